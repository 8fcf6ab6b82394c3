// C = A B^T with A's fragments loaded from global memory straight into registers, B by TMA.
//
// mutant | report | what
// 1 | register-in-flight | the next A fragment is loaded over the one in flight
// 2 | register-in-flight | the accumulators are read before the wait
// 3 | wgmma-fence-missing | no wgmma.fence between the loads of A and the wgmma
// 4 | shared-in-flight uninitialised-shared-read | no wait for B
// 5 | shared-out-of-bounds | B's descriptor points past the tile of the last step
// 6 | missing-lane | half a warp issues the wgmma
// 7 | register-in-flight | the group is committed only after the wait
#include "device.cuh"
#include "host.h"

constexpr int kM = 64, kN = 32, kK = 128, kPanelBytes = kN * 128;

DEVICE uint32_t load_pair(const uint16_t* p) {
  uint32_t pair;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(pair) : "l"(p) : "memory");
  return pair;
}

template <int MUTANT>
__global__ __launch_bounds__(128) void gemm(const uint16_t* a,
                                            const __grid_constant__ CUtensorMap map_b, float* c) {
  extern __shared__ __align__(1024) uint8_t b[];
  __shared__ uint64_t loaded;
  if (threadIdx.x == 0) {
    mbar_init(&loaded, 1);
    fence_mbar_init();
    mbar_expect_tx(&loaded, 2 * kPanelBytes);
    tma_load(b, &map_b, &loaded, 0, 0);                 // @4
    tma_load(b + kPanelBytes, &map_b, &loaded, 64, 0);  // @4
  }
  __syncthreads();
  UNLESS(4) mbar_wait(&loaded, 0);
  float acc[16] = {};
  const uint16_t* mine = a + acc_row(0) * kK + lane_id() % 4 * 2;
#pragma unroll 1
  for (int k = 0; k < kK; k += 16) {
    uint32_t fragment[4] = {load_pair(mine + k), load_pair(mine + k + 8 * kK),           // @1 @2 @7
                            load_pair(mine + k + 8), load_pair(mine + k + 8 * kK + 8)};  // @1 @2 @7
    UNLESS(3) wgmma_fence();
    const uint8_t* panel = b + (k / 64 + PICK(5, 0, 1)) * kPanelBytes;
    if (MUTANT != 6 || lane_id() < 16)
      wgmma_bf16_rs(acc, fragment, wgmma_descriptor(panel) + k % 64 / 8, 1);  // @3 @4 @5 @6
    UNLESS(7) wgmma_commit();
    UNLESS(1)
      UNLESS(2) wgmma_wait<0>();
    ONLY(7) wgmma_commit();
  }
  ONLY(1) wgmma_wait<0>();
  for (int i = 0; i < 16; ++i) c[acc_row(i) * kN + acc_column(i)] = acc[i];  // @2 @7
}

template <int MUTANT>
int run() {
  auto a = small_floats(kM * kK), b = small_floats(kN * kK, 5);
  Buffer<uint16_t> da(to_bf16(a)), db(to_bf16(b));
  Buffer<float> dc(kM * kN);
  auto map_b = tensor_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, db.data, kK, kN, kK * 2, 64, kN,
                          CU_TENSOR_MAP_SWIZZLE_128B);
  launch(gemm<MUTANT>, {.grid = 1, .block = 128, .shared = 2 * kPanelBytes}, da.data, map_b,
         dc.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dc.download(), matmul(a, b, kM, kN, kK));
}
MAIN(7)
