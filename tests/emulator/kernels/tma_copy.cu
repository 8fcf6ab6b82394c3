// y = 2 x through shared memory: TMA load, mbarrier, plain loads and stores, TMA store.
//
// mutant | report | what
// 1 | shared-in-flight shared-race uninitialised-shared-read | no wait for the load
// 2 | shared-in-flight shared-race uninitialised-shared-read | wait for the wrong parity, which passes at once
// 3 | deadlock | expect_tx counts 16 bytes too many
// 4 | mbarrier deadlock | expect_tx counts 16 bytes too few
// 5 | proxy-fence-missing | no fence.proxy.async between the stores and the TMA store
// 6 | proxy-fence-missing shared-in-flight shared-race uninitialised-shared-read | no barrier before the TMA store
// 7 | shared-in-flight | the output tile is overwritten while the TMA store may still read it
// 8 | misaligned | the load's destination is 16 bytes off
// 9 | mbarrier shared-race | other threads use the barrier before its initialisation is ordered
// 10 | shared-in-flight | wait_group.read leaves the TMA store pending
// 11 | store-at-exit | the block ends while its TMA store still reads shared memory
// 12 | mbarrier | every thread arrives on a barrier that counts one
// 13 | shared-out-of-bounds | the load's destination runs past the block's shared memory
// 14 | shared-race shared-in-flight proxy-fence-missing | the thread that fences is not the one that stored
// 15 | mbarrier-init-fence-missing | no fence.mbarrier_init before the copies use the barrier
#include "device.cuh"
#include "host.h"

constexpr int kColumns = 64, kRows = 96, kTile = 32, kThreads = 128, kTileBytes = kTile * kTile * 4;

template <int MUTANT>
__global__ void twice(const __grid_constant__ CUtensorMap in,
                      const __grid_constant__ CUtensorMap out) {
  extern __shared__ __align__(128) float smem[];
  __shared__ uint64_t loaded;
  float* tile = smem + PICK(8, 0, 4) + PICK(13, 0, kTile * kTile + 128);
  float* result = smem + kTile * kTile;
  if (threadIdx.x == 0) {
    mbar_init(&loaded, 1);
    UNLESS(15) fence_mbar_init();
  }
  UNLESS(9) __syncthreads();
  for (int y = 0; y < kRows / kTile; ++y) {
    int x = static_cast<int>(blockIdx.x) * kTile;
    if (threadIdx.x == 0 || MUTANT == 12)
      mbar_expect_tx(&loaded, kTileBytes + PICK(3, PICK(4, 0, -16), 16));  // @3 @4 @9 @12
    if (threadIdx.x == 0)
      tma_load(tile, &in, &loaded, x, y * kTile);             // @1 @2 @4 @8 @10 @12 @13 @15
    UNLESS(1) mbar_wait(&loaded, PICK(2, y % 2, y % 2 ^ 1));  // @3 @4 @9
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kThreads)
      result[i] = 2.0f * tile[i];  // @1 @2 @5 @6 @7 @10 @14
    if (MUTANT != 5 && (MUTANT != 14 || threadIdx.x == 0)) fence_proxy_async();
    UNLESS(6) __syncthreads();
    if (threadIdx.x == 0) {
      tma_store(&out, result, x, y * kTile);  // @5 @6 @7 @10 @11 @14
      bulk_commit();
      if (MUTANT != 11 || y + 1 < kRows / kTile)
        UNLESS(7) bulk_wait_read<PICK(10, 0, 1)>();
    }
    __syncthreads();
  }
}  // @10 @11

template <int MUTANT>
int run() {
  auto x = small_floats(kRows * kColumns);
  Buffer<float> dx(x), dy(kRows * kColumns);
  auto type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  auto none = CU_TENSOR_MAP_SWIZZLE_NONE;
  auto in = tensor_map(type, dx.data, kColumns, kRows, kColumns * 4, kTile, kTile, none);
  auto out = tensor_map(type, dy.data, kColumns, kRows, kColumns * 4, kTile, kTile, none);
  launch(twice<MUTANT>,
         {.grid = kColumns / kTile, .block = kThreads, .shared = 2 * kTileBytes + 64}, in, out);
  CHECK(cudaDeviceSynchronize());
  for (auto& value : x) value *= 2;
  return verdict(dy.download(), x);
}
MAIN(15)
