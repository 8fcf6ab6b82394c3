// out[i] = x[permutation[i] / top_k], a copy of rows of 16-byte vectors of any type
//
// A tile is (part of) one row: four vectors per thread, all four loads in flight. CTAs walk over
// tiles; the source of the next tile is looked up while the current one is copied, so that the
// chain index -> row is paid once per CTA. See docs/kernels/moe_permute.md.
#pragma once
#include "kernels/moe_permute/moe_permute.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/report.cuh"

namespace l4k {

constexpr int kMoePermuteUnroll = 4;
constexpr int kMoePermuteMaxThreads = 256;

__global__ void __launch_bounds__(kMoePermuteMaxThreads, 5)
    moe_permute_kernel(MoePermuteParams params, int row_tiles) {
  const int64_t num_tiles = params.rows * row_tiles;
  auto index_of = [&](int64_t tile) {
    return tile < num_tiles ? params.permutation[row_tiles == 1 ? tile : tile / row_tiles] : 0;
  };

  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  int ahead = index_of(blockIdx.x);
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int index = ahead;
    const int64_t row = row_tiles == 1 ? tile : tile / row_tiles;
    const int first = static_cast<int>(tile - row * row_tiles) * blockDim.x * kMoePermuteUnroll;
    const bool bad = index < 0 || index >= params.rows;
    if (bad && threadIdx.x == 0) report_error(params.error, DeviceError::kMoePermutePermutation);
    const uint4* from =
        static_cast<const uint4*>(params.x) + (bad ? 0 : index / params.top_k) * params.x_stride;
    uint4* to = static_cast<uint4*>(params.out) + row * params.row_vectors;

    uint4 data[kMoePermuteUnroll];
#pragma unroll
    for (int u = 0; u < kMoePermuteUnroll; ++u) {
      const int v = first + u * blockDim.x + threadIdx.x;
      data[u] = v < params.row_vectors && !bad ? ptx::load_streaming(from + v) : uint4{};
    }
    ahead = index_of(tile + gridDim.x);
#pragma unroll
    for (int u = 0; u < kMoePermuteUnroll; ++u) {
      const int v = first + u * blockDim.x + threadIdx.x;
      if (v < params.row_vectors) ptx::store_streaming(to + v, data[u]);
    }
  }
}

}  // namespace l4k
