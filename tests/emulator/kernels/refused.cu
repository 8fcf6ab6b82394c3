// Launches and tensor maps that the driver accepts; each mutant is one that it refuses.
//
// mutant | report | what
// 1 | launch | more than 48 KB of dynamic shared memory without the attribute
// 2 | launch | more shared memory than a block can have
// 3 | launch | a cluster that does not divide the grid
// 4 | launch | more threads than a block can have
// 5 | launch | a tensor map whose base is not aligned to 16 bytes
// 6 | launch | a tensor map whose row stride is not a multiple of 16 bytes
// 7 | launch | a box of more than 256 elements
// 8 | launch | an inner box wider than the swizzle span
#include "device.cuh"
#include "host.h"

constexpr int kColumns = 64, kRows = 264, kThreads = 32;

template <int MUTANT>
__global__ void copy(const __grid_constant__ CUtensorMap map, uint16_t* y) {
  extern __shared__ __align__(1024) uint16_t tile[];
  __shared__ uint64_t loaded;
  if (threadIdx.x == 0) {
    mbar_init(&loaded, 1);
    fence_mbar_init();
    mbar_expect_tx(&loaded, 256 * kColumns * 2);
    tma_load(tile, &map, &loaded, 0, 0);
  }
  __syncthreads();
  mbar_wait(&loaded, 0);
  int first_row = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  for (int row = first_row; row < 256; row += 2 * kThreads)
    for (int i = 0; i < 8; ++i)
      reinterpret_cast<uint4*>(y + row * kColumns)[i] =
          reinterpret_cast<uint4*>(tile + row * kColumns)[i ^ row % 8];
}

template <int MUTANT>
int run() {
  auto x = to_bf16(small_floats(kColumns * kRows));
  Buffer<uint16_t> dx(x), dy(256 * kColumns);
  auto map = tensor_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, dx.data + PICK(5, 0, 4), kColumns,
                        kRows - 2, kColumns * 2 + PICK(6, 0, 8), PICK(8, 64, 72), PICK(7, 256, 264),
                        CU_TENSOR_MAP_SWIZZLE_128B);
  UNLESS(1) allow_shared(copy<MUTANT>, PICK(2, 65536, 240000));
  launch(copy<MUTANT>,
         {.grid = PICK(3, 2, 3),
          .block = PICK(4, kThreads, 1056),
          .shared = PICK(2, 65536, 240000),
          .cluster = 2},
         map, dy.data);
  CHECK(cudaDeviceSynchronize());
  x.resize(256 * kColumns);
  return verdict(dy.download(), x);
}
MAIN(8)
