// bf16 GEMM with a TMA producer warpgroup, two consumer warpgroups and a ring of two stages.
//
// mutant | report | what
// 1 | shared-in-flight uninitialised-shared-read | consumers do not wait for the full barrier
// 2 | shared-in-flight uninitialised-shared-read | consumers wait for the wrong parity
// 3 | shared-in-flight shared-race mbarrier | the producer does not wait for the empty barrier
// 4 | deadlock | the producer starts with the wrong parity
// 5 | deadlock mbarrier | expect_tx counts the bytes of A only
// 6 | deadlock | expect_tx counts A twice
// 7 | wgmma-fence-missing | no wgmma.fence before the accumulators are handed over
// 8 | register-in-flight shared-in-flight | the groups are never committed, so that the wait waits for nothing
// 9 | register-in-flight shared-in-flight | no wgmma wait before the accumulators are read
// 10 | register-in-flight | the last wait leaves one group pending
// 11 | shared-in-flight shared-race | a stage is released while a wgmma reads it
// 12 | deadlock | a stage is never released
// 13 | shared-in-flight shared-race deadlock | the empty barrier counts one of the two consumers
// 14 | setmaxnreg-pool | 24 and 248 registers: 24*128 + 248*256 exceeds 168*384
// 15 | setmaxnreg-pool | the producer keeps its registers
// 16 | missing-lane | one warp of a warpgroup takes no part in the wgmma
// 17 | shared-out-of-bounds uninitialised-shared-read | the producer's stage index is one past the ring
// 18 | register-in-flight | an accumulator is scaled between two wgmmas
// 19 | mbarrier shared-race | the barriers are used before their initialisation is seen by the other warps
// 20 | mbarrier deadlock shared-in-flight | every thread of a consumer releases the stage, not one
// 21 | warpgroup-divergence | one warp of the producer keeps its registers
#include "device.cuh"
#include "host.h"

constexpr int kM = 128, kN = 32, kK = 320, kBlockK = 64, kStages = 2, kBlocks = kK / kBlockK;
constexpr int kBytesA = kM * kBlockK * 2, kBytesB = kN * kBlockK * 2,
              kStageBytes = kBytesA + kBytesB;

template <int MUTANT>
__global__ __launch_bounds__(384, 1) void gemm(const __grid_constant__ CUtensorMap map_a,
                                               const __grid_constant__ CUtensorMap map_b,
                                               float* c) {
  extern __shared__ __align__(1024) uint8_t smem[];
  __shared__ uint64_t full[kStages], empty[kStages];
  int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbar_init(&full[s], 1);
      mbar_init(&empty[s], PICK(13, 2, 1));
    }
    fence_mbar_init();
  }
  UNLESS(19) __syncthreads();
  if (group == 0) {
    UNLESS(15)
      if (MUTANT != 21 || threadIdx.x < 96) setmaxnreg_dec<24>();
    if (threadIdx.x == 0) {
      for (int k = 0; k < kBlocks; ++k) {
        int s = k % kStages;
        UNLESS(3) mbar_wait(&empty[s], k / kStages % 2 ^ PICK(4, 1, 0));  // @4 @12 @13 @20
        mbar_expect_tx(&full[s],
                       kBytesA + PICK(5, PICK(6, kBytesB, kBytesA), 0));  // @3 @5 @6 @13 @19
        uint8_t* stage = smem + PICK(17, s, s + 1) * kStageBytes;
        tma_load(stage, &map_a, &full[s], k * kBlockK, 0);  // @1 @2 @3 @5 @8 @9 @11 @13 @17
        tma_load(stage + kBytesA, &map_b, &full[s], k * kBlockK,
                 0);  // @1 @2 @3 @5 @8 @9 @11 @13 @17
      }
    }
  } else {
    setmaxnreg_inc<PICK(14, PICK(21, 240, 208), 248)>();  // @14 @15
    float acc[16] = {};
    for (int k = 0; k < kBlocks; ++k) {
      int s = k % kStages;
      UNLESS(1) mbar_wait(&full[s], k / kStages % 2 ^ PICK(2, 0, 1));  // @5 @6 @12 @19
      uint64_t a = wgmma_descriptor(smem + s * kStageBytes + (group - 1) * 64 * 128);
      uint64_t b = wgmma_descriptor(smem + s * kStageBytes + kBytesA);
      UNLESS(7) wgmma_fence();
      for (int i = 0; i < kBlockK / 16; ++i) {
        bool takes_part = MUTANT != 16 || threadIdx.x % 128 < 96;
        if (takes_part) wgmma_bf16(acc, a + 2 * i, b + 2 * i, 1);  // @1 @2 @3 @7 @11 @13 @16 @17
        ONLY(18) acc[3] *= 2.0f;                                   // @18
      }
      UNLESS(8) wgmma_commit();
      ONLY(11)
        if (threadIdx.x % 128 == 0) mbar_arrive(&empty[s]);  // @11
      if (MUTANT == 10 && k + 1 == kBlocks) wgmma_wait<1>();
      else UNLESS(9) wgmma_wait<0>();
      bool releases = MUTANT == 20 || threadIdx.x % 128 == 0;
      UNLESS(12)
        UNLESS(11)
          if (releases) mbar_arrive(&empty[s]);  // @3 @13 @20
    }
    for (int i = 0; i < 16; ++i)
      c[((group - 1) * 64 + acc_row(i)) * kN + acc_column(i)] = acc[i];  // @8 @9 @10
  }
}  // @21

template <int MUTANT>
int run() {
  auto a = small_floats(kM * kK), b = small_floats(kN * kK, 99);
  Buffer<uint16_t> da(to_bf16(a)), db(to_bf16(b));
  Buffer<float> dc(kM * kN);
  auto type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  auto map_a = tensor_map(type, da.data, kK, kM, kK * 2, kBlockK, kM, CU_TENSOR_MAP_SWIZZLE_128B);
  auto map_b = tensor_map(type, db.data, kK, kN, kK * 2, kBlockK, kN, CU_TENSOR_MAP_SWIZZLE_128B);
  allow_shared(gemm<MUTANT>, kStages * kStageBytes);
  launch(gemm<MUTANT>, {.grid = 1, .block = 384, .shared = kStages * kStageBytes}, map_a, map_b,
         dc.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dc.download(), matmul(a, b, kM, kN, kK));
}
MAIN(21)
