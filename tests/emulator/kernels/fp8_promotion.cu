// e4m3 GEMM that adds each 128 of K to fp32 totals; operands written to shared memory by hand.
//
// mutant | report | what
// 1 | proxy-fence-missing | no fence.proxy.async between the stores and the wgmma
// 2 | shared-race proxy-fence-missing uninitialised-shared-read | no barrier between the stores and the wgmma
// 3 | register-in-flight | the scratch accumulators are added to the totals before the wait
// 4 | wgmma-fence-missing | no wgmma.fence after the scratch accumulators were read
// 5 | uninitialised-shared-read | the last eight rows of B are never written
// 6 | shared-in-flight | the next block of K is written while a wgmma reads the last one
// 7 | proxy-fence-missing | fence.proxy.async comes before the stores
#include "device.cuh"
#include "host.h"

constexpr int kM = 64, kN = 32, kK = 384;

// Row-major [rows][128 bytes] at (row, 16-byte chunk), 128-byte swizzle.
DEVICE void copy_panel(uint8_t* tile, const uint8_t* source, int rows) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * 8; i += 128) {
    int row = i / 8, chunk = i % 8;
    *reinterpret_cast<uint4*>(tile + row * 128 + (chunk ^ row % 8) * 16) =
        *reinterpret_cast<const uint4*>(source + row * kK + chunk * 16);
  }
}

template <int MUTANT>
__global__ __launch_bounds__(128) void gemm(const uint8_t* a, const uint8_t* b, float* c) {
  __shared__ __align__(1024) uint8_t tile_a[kM * 128];
  __shared__ __align__(1024) uint8_t tile_b[kN * 128];
  float total[16] = {};
  float scratch[16];
#pragma unroll 1
  for (int k = 0; k < kK; k += 128) {
    ONLY(7) fence_proxy_async();
    copy_panel(tile_a, a + k, kM);                   // @1 @2 @6 @7
    copy_panel(tile_b, b + k, PICK(5, kN, kN - 8));  // @1 @2 @6 @7
    UNLESS(1)
      UNLESS(7) fence_proxy_async();
    UNLESS(2) __syncthreads();
    if (MUTANT != 4 || k == 0) wgmma_fence();
    for (int i = 0; i < 4; ++i)
      wgmma_e4m3(scratch, wgmma_descriptor(tile_a) + 2 * i, wgmma_descriptor(tile_b) + 2 * i,
                 i > 0);  // @1 @2 @4 @5 @6 @7
    wgmma_commit();
    ONLY(6) continue;
    UNLESS(3) wgmma_wait<0>();
    for (int i = 0; i < 16; ++i) total[i] += scratch[i];  // @3 @4
    __syncthreads();
  }
  wgmma_wait<0>();
  for (int i = 0; i < 16; ++i) c[acc_row(i) * kN + acc_column(i)] = total[i];
}

template <int MUTANT>
int run() {
  auto a = small_floats(kM * kK), b = small_floats(kN * kK, 3);
  Buffer<uint8_t> da(to_e4m3(a)), db(to_e4m3(b));
  Buffer<float> dc(kM * kN);
  launch(gemm<MUTANT>, {.grid = 1, .block = 128}, da.data, db.data, dc.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dc.download(), matmul(a, b, kM, kN, kK));
}
MAIN(7)
