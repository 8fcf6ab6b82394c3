// How many wgmma a warpgroup issues before the tensor core has done them: one warpgroup on one SM
// reads the clock after each of 16 products. What has been issued, less what can have been done by
// then, is how far it runs ahead (mean over the last eight).
//
// Bound: 0 (each issue waits for its product) to about 12 (no issue waits at all).
// Loop: 16 HGMMA with a clock read before the first and after each, and one after the wait, in
// this order; no load, no store.
// Disbelieve: a product faster than the tensor core (all 16 in under 0.97 x 16 x N / 2 cycles), a
// negative lead.
#include "micro.h"
#include "wgmma_all.cuh"

namespace {

using namespace micro;
using namespace l4k::ptx;

constexpr int kProducts = 16, kBytesA = 64 * 128;

// `times`: before the first product, after each, after the wait.
template <int N, bool kRegisters, bool kCommitEach>
__global__ __launch_bounds__(128) void lead(const uint8_t* a, const uint8_t* b, int passes,
                                            float* tile, int64_t* times) {
  extern __shared__ __align__(1024) uint8_t smem[];
  copy_operand(smem, a, kBytesA);
  copy_operand(smem + kBytesA, b, N * 128);
  fence_proxy_async();
  __syncthreads();
  uint32_t fragment[4] = {};
  if constexpr (kRegisters) load_fragment(smem, 0, fragment);
  const uint64_t from_a = smem_descriptor_sw128(smem);
  const uint64_t from_b = smem_descriptor_sw128(smem + kBytesA);
  float d[N / 2] = {};
  int64_t now[kProducts + 2];
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    wgmma_fence();
    now[0] = cycles();
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      if constexpr (kRegisters) Product<N, __nv_bfloat16>::rs(d, fragment, from_b);
      else Product<N, __nv_bfloat16>::ss(d, from_a, from_b);
      if (kCommitEach || i + 1 == kProducts) wgmma_commit();
      now[i + 1] = cycles();
    }
    wgmma_wait<0>();
    now[kProducts + 1] = cycles();
  }
  if (threadIdx.x == 0)
    for (int i = 0; i < kProducts + 2; ++i) times[i] = now[i] - now[0];
  for (int i = 0; i < N / 2; ++i) tile[tile_index(i, N)] = d[i];
}

template <int N, bool kRegisters, bool kCommitEach>
void measure(const std::string& name, bool small) {
  using Type = Operand<__nv_bfloat16>;
  Buffer<uint8_t> a(Type::bytes(64, 1)), b(Type::bytes(N, 2));
  const int passes = small ? 2 : 8, kept = small ? 1 : 21;
  Buffer<float> tile(64 * N);
  Buffer<int64_t> times(kProducts + 2);
  std::vector<double> leads, finishes, all;
  const l4k::LaunchConfig config{.grid = dim3(1),
                                 .block = dim3(128),
                                 .smem_bytes = size_t(kBytesA + N * 128),
                                 .dependent = false};
  for (int i = 0; i < kept; ++i) {
    MICRO_CHECK(l4k::launch(lead<N, kRegisters, kCommitEach>, config, stream(), a.data, b.data,
                            passes, tile.data, times.data));
    const std::vector<int64_t> at = times.host();
    double sum = 0;
    for (int k = kProducts / 2; k < kProducts; ++k) sum += k + 1 - at[k + 1] / (N / 2.0);
    leads.push_back(sum / (kProducts / 2));
    finishes.push_back(double(at[kProducts + 1] - at[kProducts]));
    all.push_back(double(at[kProducts + 1]));
  }
  const std::vector<float> got = tile.host();
  for (int row = 0; row < 64; row += 9)
    for (int column = 0; column < N; column += 5) {
      int sum = 0;  // the first step of the row, 16 deep
      for (int k = 0; k < 16; ++k) sum += Type::number(row, k, 1) * Type::number(column, k, 2);
      expect(got[row * N + column] == float(sum * kProducts * passes), name);
    }
  print("lead_" + name, median(leads), "wgmma");
  print("finish_" + name, median(finishes), "cycles");
  print("all_" + name, median(all) / kProducts, "cycles/wgmma");
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  measure<64, false, false>("ss_n64", small);
  measure<128, false, false>("ss_n128", small);
  measure<256, false, false>("ss_n256", small);
  measure<128, true, false>("rs_n128", small);
  measure<256, true, false>("rs_n256", small);
  measure<256, false, true>("committed_n256", small);
}
