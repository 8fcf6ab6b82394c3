// out[t] = image_rows[t] >= 0 ? image_features[image_rows[t]] : weight[input_ids[t]]
//
// A tile is (part of) one row, four vectors of 16 bytes per thread in flight. CTAs walk over tiles
// and look up the next row's source while they copy the current one. See docs/kernels/embed.md.
#pragma once
#include "kernels/embed/embed.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/report.cuh"

namespace l4k {

constexpr int kEmbedUnroll = 4;
constexpr int kEmbedMaxThreads = 256;
constexpr int kEmbedCtas = 4;  // of kEmbedMaxThreads per SM: 64 registers

__device__ __forceinline__ const uint4* reject(const EmbedParams& params, DeviceError code) {
  if (threadIdx.x == 0) report_error(params.error, code);
  return nullptr;
}

// First vector of the row that belongs to a token; null if its id is out of range.
__device__ __forceinline__ const uint4* source_of(const EmbedParams& params, int64_t token) {
  const int image = params.image_rows == nullptr ? -1 : params.image_rows[token];
  if (image != -1) {
    if (image < 0 || image >= params.num_features)
      return reject(params, DeviceError::kEmbedImageRows);
    return static_cast<const uint4*>(params.image_features) + image * params.features_stride;
  }
  const int64_t id = params.wide_ids ? static_cast<const int64_t*>(params.input_ids)[token]
                                     : static_cast<const int*>(params.input_ids)[token];
  if (id < 0 || id >= params.vocab) return reject(params, DeviceError::kEmbedInputIds);
  return static_cast<const uint4*>(params.weight) + id * params.weight_stride;
}

__global__ void __launch_bounds__(kEmbedMaxThreads, kEmbedCtas)
    embed_kernel(EmbedParams params, int row_tiles) {
  const int64_t num_tiles = params.tokens * row_tiles;
  auto token_of = [&](int64_t tile) { return row_tiles == 1 ? tile : tile / row_tiles; };
  auto source_at = [&](int64_t tile) {
    return tile < num_tiles ? source_of(params, token_of(tile)) : nullptr;
  };

  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const uint4* ahead = source_at(blockIdx.x);
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const uint4* from = ahead;
    const int64_t token = token_of(tile);
    const int first = static_cast<int>(tile - token * row_tiles) * blockDim.x * kEmbedUnroll;
    uint4* to = static_cast<uint4*>(params.out) + token * params.row_vectors;
    uint4 data[kEmbedUnroll];
#pragma unroll
    for (int u = 0; u < kEmbedUnroll; ++u) {
      const int v = first + u * blockDim.x + threadIdx.x;
      data[u] = v < params.row_vectors && from != nullptr ? ptx::load_streaming(from + v) : uint4{};
    }
    ahead = source_at(tile + gridDim.x);
#pragma unroll
    for (int u = 0; u < kEmbedUnroll; ++u) {
      const int v = first + u * blockDim.x + threadIdx.x;
      if (v < params.row_vectors) ptx::store_streaming(to + v, data[u]);
    }
  }
}

}  // namespace l4k
