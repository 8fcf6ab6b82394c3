// out[t] = sum over j of y[inverse[t * top_k + j]] + shared[t] + residual[t], in float32, in this
// order, rounded once
//
// A tile is (part of) one token: two vectors of 16 bytes per thread from each of the rows. The
// loads of `shared` and `residual` do not need the index and are issued before it arrives. A
// gather: every output is written once, by one thread, so the sum has one order.
// See docs/kernels/moe_combine.md.
#pragma once
#include "kernels/moe_combine/moe_combine.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/report.cuh"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kMoeCombineUnroll = 2;
constexpr int kMoeCombineMaxThreads = 512;

// Adds eight bf16 values to eight sums.
__device__ __forceinline__ void accumulate(float (&sum)[kVector], uint4 raw) {
  float v[kVector];
  unpack(raw, v);
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] += v[i];
}

// The thread's vectors of a row that starts at `row`; zeros past the end or without a row.
__device__ __forceinline__ void load_vectors(const void* row, int first, int vectors,
                                             uint4 (&out)[kMoeCombineUnroll]) {
#pragma unroll
  for (int u = 0; u < kMoeCombineUnroll; ++u) {
    const int v = first + u * blockDim.x;
    out[u] = row != nullptr && v < vectors ? ptx::load_streaming(static_cast<const uint4*>(row) + v)
                                           : uint4{};
  }
}

__device__ __forceinline__ const void* row_of(const void* base, int64_t row, int64_t stride) {
  return base == nullptr ? nullptr : static_cast<const __nv_bfloat16*>(base) + row * stride;
}

__global__ void __launch_bounds__(kMoeCombineMaxThreads)
    moe_combine_kernel(MoeCombineParams params, int row_tiles) {
  const int vectors = static_cast<int>(params.width / kVector);
  const int64_t num_tiles = params.tokens * row_tiles;
  const int num_rows = static_cast<int>(params.tokens * params.top_k);

  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int64_t token = row_tiles == 1 ? tile : tile / row_tiles;
    const int first =
        static_cast<int>(tile - token * row_tiles) * blockDim.x * kMoeCombineUnroll + threadIdx.x;
    uint4 shared[kMoeCombineUnroll], residual[kMoeCombineUnroll];
    load_vectors(row_of(params.shared, token, params.shared_stride), first, vectors, shared);
    load_vectors(row_of(params.residual, token, params.residual_stride), first, vectors, residual);

    float sum[kMoeCombineUnroll][kVector] = {};
    bool bad = false;
#pragma unroll 2
    for (int j = 0; j < params.top_k; ++j) {
      const int row = params.inverse[token * params.top_k + j];
      const bool outside = row < 0 || row >= num_rows;
      bad |= outside;
      uint4 y[kMoeCombineUnroll];
      load_vectors(outside ? nullptr : row_of(params.y, row, params.y_stride), first, vectors, y);
#pragma unroll
      for (int u = 0; u < kMoeCombineUnroll; ++u) accumulate(sum[u], y[u]);
    }
    if (bad && threadIdx.x == 0) report_error(params.error, DeviceError::kMoeCombineInverse);

#pragma unroll
    for (int u = 0; u < kMoeCombineUnroll; ++u) {
      accumulate(sum[u], shared[u]);
      accumulate(sum[u], residual[u]);
      const int v = first + u * blockDim.x;
      if (v < vectors)
        ptx::store_streaming(static_cast<uint4*>(params.out) + token * vectors + v,
                             bad ? uint4{} : pack(sum[u]));
    }
  }
}

}  // namespace l4k
