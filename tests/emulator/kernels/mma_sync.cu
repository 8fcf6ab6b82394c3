// A 16 x 8 tile per warp with ldmatrix and mma.sync; stmatrix and a TMA store bring it out.
//
// mutant | report | what
// 1 | shared-race uninitialised-shared-read | no barrier between the stores and ldmatrix
// 2 | misaligned | ldmatrix row addresses eight bytes off
// 3 | missing-lane | half a warp executes ldmatrix
// 4 | missing-lane | half a warp executes mma.sync
// 5 | shared-out-of-bounds | ldmatrix row addresses past the block's shared memory
// 6 | uninitialised-shared-read | one row of A is never written
// 7 | proxy-fence-missing | no fence.proxy.async between stmatrix and the TMA store
// 8 | proxy-fence-missing shared-in-flight shared-race uninitialised-shared-read | no barrier after stmatrix
// 9 | store-at-exit | the block ends while its TMA store still reads shared memory
#include "device.cuh"
#include "host.h"

constexpr int kM = 16, kN = 16, kK = 32, kPitch = kK + 8;

template <int MUTANT>
__global__ void gemm(const uint16_t* a, const uint16_t* b,
                     const __grid_constant__ CUtensorMap map_c) {
  __shared__ __align__(128) uint16_t out[kM * kN];
  __shared__ __align__(16) uint16_t tile_b[kN * kPitch];
  __shared__ __align__(16) uint16_t tile_a[kM * kPitch];
  int warp = static_cast<int>(threadIdx.x) / 32, lane = lane_id();
  for (int i = static_cast<int>(threadIdx.x); i < kM * kK; i += 64)
    if (MUTANT != 6 || i / kK != 5) tile_a[i / kK * kPitch + i % kK] = a[i];  // @1
  for (int i = static_cast<int>(threadIdx.x); i < kN * kK; i += 64)
    tile_b[i / kK * kPitch + i % kK] = b[i];  // @1
  UNLESS(1) __syncthreads();
  float acc[4] = {};
  for (int k = 0; k < kK; k += 16) {
    uint32_t fragment_a[4], fragment_b[2];
    const uint16_t* row_a =
        tile_a + lane % 16 * kPitch + k + lane / 16 * 8 + PICK(2, 0, 4) + PICK(5, 0, 4096);
    const uint16_t* row_b = tile_b + (warp * 8 + lane % 8) * kPitch + k + lane / 8 % 2 * 8;
    if (MUTANT != 3 || lane < 16) ldmatrix_x4(fragment_a, row_a);         // @1 @2 @3 @5 @6
    ldmatrix_x2(fragment_b, row_b);                                       // @1
    if (MUTANT != 4 || lane < 16) mma_bf16(acc, fragment_a, fragment_b);  // @4
  }
  stmatrix_x2(out + lane % 16 * kN + warp * 8, pack_bf16(acc[0], acc[1]),  // @7 @8
              pack_bf16(acc[2], acc[3]));
  UNLESS(7) fence_proxy_async();
  UNLESS(8) __syncthreads();
  if (threadIdx.x == 0) {
    tma_store(&map_c, out, 0, 0);  // @7 @8 @9
    bulk_commit();
    UNLESS(9) bulk_wait_read<0>();
  }
}  // @9

template <int MUTANT>
int run() {
  auto a = small_floats(kM * kK), b = small_floats(kN * kK, 11);
  Buffer<uint16_t> da(to_bf16(a)), db(to_bf16(b)), dc(kM * kN);
  auto map_c = tensor_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, dc.data, kN, kM, kN * 2, kN, kM,
                          CU_TENSOR_MAP_SWIZZLE_NONE);
  launch(gemm<MUTANT>, {.grid = 1, .block = 64}, da.data, db.data, map_c);
  CHECK(cudaDeviceSynchronize());
  return verdict(dc.download(), to_bf16(matmul(a, b, kM, kN, kK)));
}
MAIN(9)
