// q = saturate(x / scale), scale = amax / 448 of a row, 128 elements of it, a block or a matrix
//
// rows    one CTA holds a row in registers (as rms_norm does) and loads the next one before it
//         reduces this one; with a permutation it gathers: the fp8 form of moe_permute
// blocks  one CTA holds a block of 128 x 128 in registers
// tensor  two launches, for the maximum must be known before the first element is written: each CTA
//         leaves the maximum of its share, then every CTA reduces those and quantises
// See docs/kernels/quantize_fp8.md.
#pragma once
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/base.h"
#include "tile/fp8.cuh"
#include "tile/reduce.cuh"
#include "tile/report.cuh"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kQuantizeVectors = 2;        // per thread and row
constexpr int kQuantizeRowRegisters = 48;  // four CTAs of a 5,120-wide row fit an SM

// Row of x that becomes row `row` of q; -1 if the permutation is out of range.
__device__ __forceinline__ int64_t source_row(const QuantizeRowsParams& params, int64_t row) {
  if (params.permutation == nullptr || row >= params.rows) return row;
  const int index = params.permutation[row];
  if (index >= 0 && index < params.rows) return index / params.top_k;
  if (threadIdx.x == 0) report_error(params.error, DeviceError::kMoePermutePermutation);
  return -1;
}

__device__ __forceinline__ void load_row(const QuantizeRowsParams& params, int64_t row,
                                         uint4 (&out)[kQuantizeVectors]) {
  const uint4* x = static_cast<const uint4*>(params.x) + row * (params.x_stride / kVector);
#pragma unroll
  for (int u = 0; u < kQuantizeVectors; ++u) {
    const int v = threadIdx.x + u * blockDim.x;
    out[u] = row >= 0 && row < params.x_rows && v < params.width / kVector
                 ? ptx::load_streaming(x + v)
                 : uint4{};
  }
}

template <int kScaling>
__global__ void __maxnreg__(kQuantizeRowRegisters) quantize_rows_kernel(QuantizeRowsParams params) {
  __shared__ uint32_t partials[2][32];
  const int vectors = params.width / kVector;
  const int64_t scales = kScaling == kScalingRow ? 1 : params.width / kScaleBlock;

  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  // Two rows ahead the index, one row ahead the data.
  uint4 ahead[kQuantizeVectors];
  load_row(params, source_row(params, blockIdx.x), ahead);
  int64_t next = source_row(params, int64_t{blockIdx.x} + gridDim.x);
  int parity = 0;
  for (int64_t row = blockIdx.x; row < params.rows; row += gridDim.x, parity ^= 1) {
    uint4 x[kQuantizeVectors];
#pragma unroll
    for (int u = 0; u < kQuantizeVectors; ++u) x[u] = ahead[u];
    load_row(params, row + gridDim.x < params.rows ? next : -1, ahead);
    next = source_row(params, row + 2 * int64_t{gridDim.x});
    store_fp8_row<kScaling>(x, vectors, static_cast<uint2*>(params.q) + row * vectors,
                            params.scale + row * scales, partials[parity]);
  }
}

constexpr int kQuantizeBlockThreads = 256;
constexpr int kQuantizeBlockLanes = kScaleBlock / kVector;  // along K
constexpr int kQuantizeBlockStep = kQuantizeBlockThreads / kQuantizeBlockLanes;
constexpr int kQuantizeBlockVectors = kScaleBlock / kQuantizeBlockStep;

__global__ void __launch_bounds__(kQuantizeBlockThreads)
    quantize_blocks_kernel(QuantizeBlocksParams params) {
  __shared__ uint32_t partials[2][32];
  const int64_t block_columns = params.width / kScaleBlock;
  const int64_t block_rows = ceil_div<int64_t>(params.rows, kScaleBlock);
  const int64_t num_blocks = params.matrices * block_rows * block_columns;
  const int64_t row_vectors = params.width / kVector;

  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  int parity = 0;
  for (int64_t block = blockIdx.x; block < num_blocks; block += gridDim.x, parity ^= 1) {
    const int64_t column = block % block_columns, rest = block / block_columns;
    const int64_t matrix = rest / block_rows, block_row = rest - matrix * block_rows;
    const int row = threadIdx.x / kQuantizeBlockLanes;
    const int rows = static_cast<int>(
        min(params.rows - block_row * kScaleBlock, static_cast<int64_t>(kScaleBlock)));
    const int64_t first = (matrix * params.rows + block_row * kScaleBlock + row) * row_vectors +
                          column * kQuantizeBlockLanes + threadIdx.x % kQuantizeBlockLanes;
    uint4 x[kQuantizeBlockVectors];
    uint32_t amax = 0;
#pragma unroll
    for (int u = 0; u < kQuantizeBlockVectors; ++u)
      x[u] = row + u * kQuantizeBlockStep < rows
                 ? ptx::load_streaming(static_cast<const uint4*>(params.x) + first +
                                       u * kQuantizeBlockStep * row_vectors)
                 : uint4{};
#pragma unroll
    for (int u = 0; u < kQuantizeBlockVectors; ++u) amax = max(amax, amax_bits(x[u]));
    const Fp8Scale scale = fp8_scale(__uint_as_float(cta_max(amax, partials[parity])));
    if (threadIdx.x == 0) params.scale[block] = scale.scale;
#pragma unroll
    for (int u = 0; u < kQuantizeBlockVectors; ++u)
      if (row + u * kQuantizeBlockStep < rows)
        ptx::store_streaming(
            static_cast<uint2*>(params.q) + first + u * kQuantizeBlockStep * row_vectors,
            to_fp8(x[u], scale.inverse));
  }
}

constexpr int kQuantizeTensorThreads = 256;
constexpr int kQuantizeTensorUnroll = 4;

// Calls `use(vector index, vector)` for the CTA's share of matrix blockIdx.y.
template <typename Use>
__device__ __forceinline__ void for_each_vector(const QuantizeTensorParams& params, Use use) {
  const int64_t vectors = params.elements / kVector;
  const int64_t step = int64_t{gridDim.x} * kQuantizeTensorThreads;
  const uint4* x = static_cast<const uint4*>(params.x) + blockIdx.y * vectors;
  for (int64_t first = int64_t{blockIdx.x} * kQuantizeTensorThreads + threadIdx.x; first < vectors;
       first += step * kQuantizeTensorUnroll) {
    uint4 data[kQuantizeTensorUnroll];
#pragma unroll
    for (int u = 0; u < kQuantizeTensorUnroll; ++u)
      if (first + u * step < vectors) data[u] = ptx::load_streaming(x + first + u * step);
#pragma unroll
    for (int u = 0; u < kQuantizeTensorUnroll; ++u)
      if (first + u * step < vectors) use(first + u * step, data[u]);
  }
}

__global__ void __launch_bounds__(kQuantizeTensorThreads)
    quantize_tensor_amax_kernel(QuantizeTensorParams params) {
  __shared__ uint32_t partials[32];
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  uint32_t amax = 0;
  for_each_vector(params, [&](int64_t, uint4 x) { amax = max(amax, amax_bits(x)); });
  amax = cta_max(amax, partials);
  if (threadIdx.x == 0) params.maxima[blockIdx.y * gridDim.x + blockIdx.x] = amax;
}

__global__ void __launch_bounds__(kQuantizeTensorThreads)
    quantize_tensor_kernel(QuantizeTensorParams params) {
  __shared__ uint32_t partials[32];
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  uint32_t amax = 0;
  for (int i = threadIdx.x; i < static_cast<int>(gridDim.x); i += kQuantizeTensorThreads)
    amax = max(amax, params.maxima[blockIdx.y * gridDim.x + i]);
  const Fp8Scale scale = fp8_scale(__uint_as_float(cta_max(amax, partials)));
  if (blockIdx.x == 0 && threadIdx.x == 0) params.scale[blockIdx.y] = scale.scale;
  uint2* q = static_cast<uint2*>(params.q) + blockIdx.y * (params.elements / kVector);
  for_each_vector(
      params, [&](int64_t v, uint4 x) { ptx::store_streaming(q + v, to_fp8(x, scale.inverse)); });
}

}  // namespace l4k
