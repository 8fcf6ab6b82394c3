// d[64, 64] = a[64, 64] * b[64, 64]^T, bf16 in, float32 accumulation, bf16 out.
//
//   TMA a, b  ->  loaded  ->  4 x wgmma m64n64k16  ->  stmatrix  ->  fence + barrier  ->  TMA d
//
// barrier   arrives               waits          promises
// loaded    thread 0 + TMA bytes  all threads    a and b are in shared memory
//
// One warpgroup, one CTA. It exists to show that descriptors, swizzles and fragments agree between
// TMA, wgmma and stmatrix; see docs/kernels/mma_tile.md.
#pragma once
#include <cuda.h>

#include "probes/mma_tile/mma_tile.h"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "tile/swizzle.h"
#include "tile/vector.cuh"

namespace l4k {

struct MmaTileSmem {
  alignas(1024) __nv_bfloat16 a[kMmaTile * kMmaTile];  // [64 rows][128 bytes], 128-byte swizzle
  alignas(1024) __nv_bfloat16 b[kMmaTile * kMmaTile];
  alignas(1024) __nv_bfloat16 d[kMmaTile * kMmaTile];
  uint64_t loaded;
};

// Writes the accumulators as bf16 into a swizzled [64][64] tile. Each stmatrix stores the 16x16
// block of this warp's 16 rows and 16 columns: lanes 0-15 address its rows at the left 8 columns,
// lanes 16-31 at the right 8.
__device__ __forceinline__ void store_accumulators(const float (&acc)[32], __nv_bfloat16* d) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = 16 * warp + lane % 16;
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      packed[i] = pack_pair(acc[8 * block + 2 * i], acc[8 * block + 2 * i + 1]);
    }
    const uint32_t column_bytes = 32 * block + 16 * (lane / 16);
    char* address = reinterpret_cast<char*>(d) + swizzle_128(row * 128 + column_bytes);
    ptx::stmatrix_x4(address, packed[0], packed[1], packed[2], packed[3]);
  }
}

__global__ void __launch_bounds__(128, 1)
    mma_tile_kernel(const __grid_constant__ CUtensorMap map_a,
                    const __grid_constant__ CUtensorMap map_b,
                    const __grid_constant__ CUtensorMap map_d) {
  extern __shared__ char dynamic_smem[];
  // The launch reserves 1 KB more than the struct: dynamic shared memory is only 16-byte aligned.
  auto& smem = *reinterpret_cast<MmaTileSmem*>((reinterpret_cast<uintptr_t>(dynamic_smem) + 1023) &
                                               ~uintptr_t{1023});

  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&smem.loaded, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::grid_dependency_wait();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(&smem.loaded, sizeof(smem.a) + sizeof(smem.b));
    ptx::tma_load_2d(smem.a, &map_a, &smem.loaded, 0, 0);
    ptx::tma_load_2d(smem.b, &map_b, &smem.loaded, 0, 0);
  }
  ptx::mbarrier_wait(&smem.loaded, 0);

  float acc[32];  // [64 rows][64 columns] over 128 threads
  const uint64_t a = ptx::smem_descriptor_sw128(smem.a), b = ptx::smem_descriptor_sw128(smem.b);
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {  // 16 values of K are 32 bytes, 2 units of the descriptor
    ptx::Wgmma<64, __nv_bfloat16>::ss(acc, a + 2 * k, b + 2 * k, k > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();

  store_accumulators(acc, smem.d);
  ptx::fence_proxy_async();
  __syncthreads();
  ptx::grid_launch_dependents();
  if (threadIdx.x == 0) {
    ptx::tma_store_2d(&map_d, smem.d, 0, 0);
    ptx::tma_store_commit();
    ptx::tma_store_wait<0>();
  }
}

}  // namespace l4k
