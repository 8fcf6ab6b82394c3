// out[m, f] = silu(x[m, f]) * x[m, F + f],  silu(z) = z / (1 + exp(-z))
//
// A tile is one row's run of kSiluMulThreads * kSiluMulUnroll vectors of 16 bytes; CTAs walk over
// tiles with a grid stride. Nothing is read twice, so the floor is 3 * M * F * 2 bytes over the
// copy bandwidth; each thread keeps four independent 16-byte loads in flight, 98 KB per SM at the
// occupancy of the budget. See docs/kernels/silu_mul.md.
#pragma once
#include "kernels/silu_mul/silu_mul.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/activation.cuh"
#include "tile/base.h"
#include "tile/fp8.cuh"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kSiluMulThreads = 128;
constexpr int kSiluMulUnroll = 2;
constexpr int kSiluMulTile = kSiluMulThreads * kSiluMulUnroll;  // vectors of 8 outputs

__device__ __forceinline__ void silu_mul_vector(uint4 gate_raw, uint4 up_raw,
                                                float (&out)[kVector]) {
  float gate[kVector], up[kVector];
  unpack(gate_raw, gate);
  unpack(up_raw, up);
#pragma unroll
  for (int i = 0; i < kVector; ++i) out[i] = silu(gate[i]) * up[i];
}

__global__ void __launch_bounds__(kSiluMulThreads) silu_mul_kernel(SiluMulParams params) {
  const int row_vectors = static_cast<int>(params.width / 8);
  const int row_tiles = ceil_div(row_vectors, kSiluMulTile);
  const int64_t num_tiles = params.rows * row_tiles;

  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
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
      if (v >= row_vectors) continue;
      float value[kVector];
      silu_mul_vector(gate[u], up[u], value);
      ptx::store_streaming(out + v, pack(value));
    }
  }
}

// The same as e4m3: a CTA holds a row of float32 products in registers, two vectors per thread, and
// has the next row's gates and ups in flight while it reduces this one.
constexpr int kSiluMulFp8Vectors = 2;
constexpr int kSiluMulFp8Registers = 64;

struct SiluMulRow {
  uint4 gate[kSiluMulFp8Vectors], up[kSiluMulFp8Vectors];
};

__device__ __forceinline__ void load_row(const SiluMulFp8Params& params, int64_t row,
                                         SiluMulRow& out) {
  const int vectors = params.width / kVector;
  const uint4* gates = static_cast<const uint4*>(params.x) + row * (params.x_stride / kVector);
#pragma unroll
  for (int u = 0; u < kSiluMulFp8Vectors; ++u) {
    const int v = threadIdx.x + u * blockDim.x;
    out.gate[u] = out.up[u] = uint4{};  // silu(0) * 0 = 0
    if (row < params.rows && v < vectors) {
      out.gate[u] = ptx::load_streaming(gates + v);
      out.up[u] = ptx::load_streaming(gates + vectors + v);
    }
  }
}

template <int kScaling>
__global__ void __maxnreg__(kSiluMulFp8Registers) silu_mul_fp8_kernel(SiluMulFp8Params params) {
  __shared__ uint32_t partials[2][32];
  const int vectors = params.width / kVector;
  const int64_t scales = kScaling == kScalingRow ? 1 : params.width / kScaleBlock;

  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  SiluMulRow ahead;
  load_row(params, blockIdx.x, ahead);
  int parity = 0;
  for (int64_t row = blockIdx.x; row < params.rows; row += gridDim.x, parity ^= 1) {
    float value[kSiluMulFp8Vectors][kVector];
#pragma unroll
    for (int u = 0; u < kSiluMulFp8Vectors; ++u)
      silu_mul_vector(ahead.gate[u], ahead.up[u], value[u]);
    load_row(params, row + gridDim.x, ahead);
    store_fp8_row<kScaling>(value, vectors, static_cast<uint2*>(params.q) + row * vectors,
                            params.scale + row * scales, partials[parity]);
  }
}

}  // namespace l4k
