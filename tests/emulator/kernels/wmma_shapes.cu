// nvcuda::wmma in all its shapes, types and layouts, through shared and from global memory.
//
// mutant | report | what
// 1 | missing-lane | half a warp multiplies
// 2 | shared-race uninitialised-shared-read | no barrier before the load from shared memory
// 3 | global-out-of-bounds | a leading dimension that is too large
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "device.cuh"
#include "host.h"

using namespace nvcuda;
namespace precision = wmma::experimental::precision;

// d = 2 (a b + c), where every matrix is whole in memory; a goes through shared memory.
template <int MUTANT, int M, int N, int K, typename T, typename LayoutA, typename LayoutB,
          typename Memory, typename C, typename D>
__global__ void product(const Memory* a, const Memory* b, const C* c, D* d, bool rows) {
  constexpr bool kRowsA = std::is_same_v<LayoutA, wmma::row_major>;
  constexpr bool kRowsB = std::is_same_v<LayoutB, wmma::row_major>;
  __shared__ __align__(32) Memory staged[M * K];
  for (int i = static_cast<int>(threadIdx.x); i < M * K; i += 64) staged[i] = a[i];  // @2
  UNLESS(2) __syncthreads();
  if (threadIdx.x >= 32) return;
  wmma::fragment<wmma::matrix_a, M, N, K, T, LayoutA> fa;
  wmma::fragment<wmma::matrix_b, M, N, K, T, LayoutB> fb;
  wmma::fragment<wmma::accumulator, M, N, K, C> fc;
  wmma::fragment<wmma::accumulator, M, N, K, D> fd;
  wmma::fill_fragment(fd, static_cast<D>(0.f));
  auto order = rows ? wmma::mem_row_major : wmma::mem_col_major;
  wmma::load_matrix_sync(fa, staged, kRowsA ? K : M);           // @2
  wmma::load_matrix_sync(fb, b, PICK(3, kRowsB ? N : K, 256));  // @3
  wmma::load_matrix_sync(fc, c, rows ? N : M, order);
  if (MUTANT != 1 || threadIdx.x < 16) wmma::mma_sync(fd, fa, fb, fc);  // @1
  static_assert(fc.num_elements == fd.num_elements);
  for (int i = 0; i < fd.num_elements; ++i) fd.x[i] = fd.x[i] + fd.x[i];  // element by element
  wmma::store_matrix_sync(d, fd, rows ? N : M, order);
}

template <typename T>
std::vector<T> convert(const std::vector<float>& x) {
  std::vector<T> v(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    float f = std::is_unsigned_v<T> && x[i] < 0 ? 250 - x[i] : x[i];
    v[i] = static_cast<T>(f);
  }
  return v;
}

template <int MUTANT, int M, int N, int K, typename T, typename C, typename D, typename LayoutA,
          typename LayoutB, typename Memory>
int check_layouts() {
  constexpr bool kRowsA = std::is_same_v<LayoutA, wmma::row_major>;
  constexpr bool kRowsB = std::is_same_v<LayoutB, wmma::row_major>;
  auto a = convert<Memory>(small_floats(M * K)), b = convert<Memory>(small_floats(K * N, 5));
  auto c = convert<C>(small_floats(M * N, 9));
  Buffer<Memory> da(a), db(b);
  Buffer<C> dc(c);
  for (bool rows : {true, false}) {
    std::vector<D> want(M * N);
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) {
        int at = rows ? i * N + j : j * M + i;
        double sum = static_cast<double>(c[at]);
        for (int k = 0; k < K; ++k)
          sum += static_cast<double>(a[kRowsA ? i * K + k : k * M + i]) *
                 static_cast<double>(b[kRowsB ? k * N + j : j * K + k]);
        want[at] = static_cast<D>(static_cast<float>(2 * sum));
      }
    Buffer<D> dd(M * N);
    launch(product<MUTANT, M, N, K, T, LayoutA, LayoutB, Memory, C, D>, {.grid = 1, .block = 64},
           da.data, db.data, dc.data, dd.data, rows);
    CHECK(cudaDeviceSynchronize());
    if (int failed = verdict(dd.download(), want)) return failed;
  }
  return 0;
}

template <int MUTANT, int M, int N, int K, typename T, typename C, typename D = C,
          typename Memory = T>
int check_shape() {
  using Row = wmma::row_major;
  using Col = wmma::col_major;
  int failed = check_layouts<MUTANT, M, N, K, T, C, D, Row, Col, Memory>();
  if constexpr (MUTANT == 0) {
    if (!failed) failed = check_layouts<MUTANT, M, N, K, T, C, D, Row, Row, Memory>();
    if (!failed) failed = check_layouts<MUTANT, M, N, K, T, C, D, Col, Row, Memory>();
    if (!failed) failed = check_layouts<MUTANT, M, N, K, T, C, D, Col, Col, Memory>();
  }
  return failed;
}

// 4-bit and 1-bit elements, 32 or 8 to a word; the rows of A and the columns of B are in a row.
template <typename T>
__global__ void small_product(const uint32_t* a, const uint32_t* b, int* d, bool conjunction) {
  constexpr int kK = std::is_same_v<T, precision::b1> ? 128 : 32;
  wmma::fragment<wmma::matrix_a, 8, 8, kK, T, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 8, 8, kK, T, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, 8, 8, kK, int> fd;
  wmma::fill_fragment(fd, 3);
  wmma::load_matrix_sync(fa, a, kK);
  wmma::load_matrix_sync(fb, b, kK);
  if constexpr (kK == 32) wmma::mma_sync(fd, fa, fb, fd);
  else if (conjunction) wmma::bmma_sync(fd, fa, fb, fd, wmma::experimental::bmmaBitOpAND);
  else wmma::bmma_sync(fd, fa, fb, fd);
  wmma::store_matrix_sync(d, fd, 8, wmma::mem_row_major);
}

template <typename T, int kBits, bool kSigned>
int check_small(bool conjunction = false) {
  constexpr int kWords = 4;  // of a row: 128 bits
  std::vector<uint32_t> a(8 * kWords), b(8 * kWords);
  for (size_t i = 0; i < a.size(); ++i)
    a[i] = static_cast<uint32_t>(i * 2654435761u),
    b[i] = static_cast<uint32_t>(i * 40503u + 77777u);
  auto element = [](const std::vector<uint32_t>& v, int row, int k) {
    int at = k * kBits, x = static_cast<int>(v[row * kWords + at / 32] >> at % 32);
    x &= (1 << kBits) - 1;
    return kSigned && x >> (kBits - 1) ? x - (1 << kBits) : x;
  };
  std::vector<int> want(64, 3);
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < 128 / kBits; ++k) {
        int x = element(a, i, k), y = element(b, j, k);
        want[i * 8 + j] += kBits == 1 && !conjunction ? x ^ y : x * y;
      }
  Buffer<uint32_t> da(a), db(b);
  Buffer<int> dd(64);
  launch(small_product<T>, {.grid = 1, .block = 32}, da.data, db.data, dd.data, conjunction);
  CHECK(cudaDeviceSynchronize());
  return verdict(dd.download(), want);
}

template <int MUTANT>
int run() {
  if (int failed = check_shape<MUTANT, 16, 16, 16, half, float>()) return failed;
  if constexpr (MUTANT != 0) return 0;
  using bf16 = __nv_bfloat16;
  using s8 = signed char;
  using u8 = unsigned char;
  int (*const shapes[])() = {
      check_shape<MUTANT, 16, 16, 16, half, half>,
      check_shape<MUTANT, 16, 16, 16, half, half, float>,
      check_shape<MUTANT, 16, 16, 16, half, float, half>,
      check_shape<MUTANT, 32, 8, 16, half, float>,
      check_shape<MUTANT, 8, 32, 16, half, half>,
      check_shape<MUTANT, 16, 16, 16, bf16, float>,
      check_shape<MUTANT, 32, 8, 16, bf16, float>,
      check_shape<MUTANT, 8, 32, 16, bf16, float>,
      check_shape<MUTANT, 16, 16, 8, wmma::precision::tf32, float, float, float>,
      check_shape<MUTANT, 16, 16, 16, s8, int>,
      check_shape<MUTANT, 16, 16, 16, u8, int>,
      check_shape<MUTANT, 32, 8, 16, s8, int>,
      check_shape<MUTANT, 32, 8, 16, u8, int>,
      check_shape<MUTANT, 8, 32, 16, s8, int>,
      check_shape<MUTANT, 8, 32, 16, u8, int>,
      check_shape<MUTANT, 8, 8, 4, double, double>};
  for (auto* check : shapes)
    if (int failed = check()) return failed;
  if (int failed = check_small<precision::s4, 4, true>()) return failed;
  if (int failed = check_small<precision::u4, 4, false>()) return failed;
  if (int failed = check_small<precision::b1, 1, false>()) return failed;
  return check_small<precision::b1, 1, false>(true);
}
MAIN(3)
