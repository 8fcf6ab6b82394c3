// c = a + b, once per element and once in vectors of four.
//
// mutant | report | what
// 1 | global-out-of-bounds | no bounds check
// 2 | global-out-of-bounds | bounds check off by one
// 3 | misaligned | 16-byte access four bytes off its alignment
// 4 | uninitialised-register | a predicated move leaves its target unset in some lanes
// 5 | global-out-of-bounds | an element offset that wraps in 32 bits
#include "device.cuh"
#include "host.h"

constexpr int kN = 1000;

template <int MUTANT>
__global__ void add(const float* a, const float* b, float* c, int n) {
  int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (PICK(1, PICK(2, i < n, i <= n), true)) {
    int at = PICK(5, i, i - n);
    c[at] = a[at] + b[at];  // @1 @2 @5
  }
}

template <int MUTANT>
__global__ void add_vectors(const float* a, const float* b, float* c, int n) {
  int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * 4;
  float scale;
  asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %1, %2;\n@p mov.f32 %0, 0f3f800000;\n}"
               : "=f"(scale)
               : "r"(i), "r"(PICK(4, n + 1024, n - 512)));
  if (i + 4 > n) return;
  auto x = *reinterpret_cast<const float4*>(a + i + PICK(3, 0, 1));  // @3
  auto y = *reinterpret_cast<const float4*>(b + i);
  float4 sum = {scale * (x.x + y.x), x.y + y.y, x.z + y.z, x.w + y.w};  // @4
  *reinterpret_cast<float4*>(c + i) = sum;                              // @4
}

template <int MUTANT>
int run() {
  auto a = small_floats(kN), b = small_floats(kN, 7);
  Buffer<float> da(a), db(b), dc(kN);
  std::vector<float> want(kN);
  for (int i = 0; i < kN; ++i) want[i] = a[i] + b[i];
  launch(add<MUTANT>, {.grid = 4, .block = 256}, da.data, db.data, dc.data, kN);
  CHECK(cudaDeviceSynchronize());
  if (int failed = verdict(dc.download(), want)) return failed;
  dc.zero();
  launch(add_vectors<MUTANT>, {.grid = 1, .block = 256}, da.data, db.data, dc.data, kN);
  CHECK(cudaDeviceSynchronize());
  return verdict(dc.download(), want);
}
MAIN(5)
