// out[m, f] = silu(x[m, f]) * x[m, F + f],  silu(z) = z / (1 + exp(-z))
//
// A tile is one row's run of kSiluMulThreads * kSiluMulUnroll vectors of 16 bytes; CTAs walk over
// tiles with a grid stride. Nothing is read twice, so the floor is 3 * M * F * 2 bytes over the
// copy bandwidth; each thread keeps four independent 16-byte loads in flight, 98 KB per SM at the
// occupancy of the budget. See docs/kernels/silu_mul.md.
#pragma once
#include <cuda_bf16.h>

#include "kernels/silu_mul/silu_mul.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/base.h"

namespace l4k {

constexpr int kSiluMulThreads = 128;
constexpr int kSiluMulUnroll = 2;
constexpr int kSiluMulTile = kSiluMulThreads * kSiluMulUnroll;  // vectors of 8 outputs

// Eight bf16 values in one 16-byte register quad.
union SiluMulVector {
  uint4 raw;
  __nv_bfloat162 pairs[4];
};

__device__ __forceinline__ uint4 silu_mul_vector(uint4 gate_raw, uint4 up_raw) {
  SiluMulVector gate{gate_raw}, up{up_raw}, out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 g = __bfloat1622float2(gate.pairs[i]), u = __bfloat1622float2(up.pairs[i]);
    out.pairs[i] = __floats2bfloat162_rn(__fdividef(g.x, 1.f + __expf(-g.x)) * u.x,
                                         __fdividef(g.y, 1.f + __expf(-g.y)) * u.y);
  }
  return out.raw;
}

__global__ void __launch_bounds__(kSiluMulThreads) silu_mul_kernel(SiluMulParams params) {
  const int row_vectors = static_cast<int>(params.width / 8);
  const int row_tiles = ceil_div(row_vectors, kSiluMulTile);
  const int64_t num_tiles = params.rows * row_tiles;

  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int64_t row = tile / row_tiles;
    const int first = static_cast<int>(tile - row * row_tiles) * kSiluMulTile + threadIdx.x;
    const uint4* gates = static_cast<const uint4*>(params.x) + row * (params.x_stride / 8);
    const uint4* ups = gates + row_vectors;
    uint4* out = static_cast<uint4*>(params.out) + row * row_vectors;

    uint4 gate[kSiluMulUnroll], up[kSiluMulUnroll];
#pragma unroll
    for (int u = 0; u < kSiluMulUnroll; ++u) {
      const int v = first + u * kSiluMulThreads;
      if (v < row_vectors) {
        gate[u] = ptx::load_streaming(gates + v);
        up[u] = ptx::load_streaming(ups + v);
      }
    }
#pragma unroll
    for (int u = 0; u < kSiluMulUnroll; ++u) {
      const int v = first + u * kSiluMulThreads;
      if (v < row_vectors) ptx::store_streaming(out + v, silu_mul_vector(gate[u], up[u]));
    }
  }
}

}  // namespace l4k
