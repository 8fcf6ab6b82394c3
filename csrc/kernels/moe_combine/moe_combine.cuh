// out[t] = sum over j of y[inverse[t * top_k + j]] + shared[t] + residual[t], in float32, in this
// order, rounded once; and round(out * rsqrt(mean(out^2) + eps)) * weight, or e4m3 of it
//
// A tile is (part of) one token: two vectors of 16 bytes per thread from each of the rows. The
// loads of `shared` and `residual` do not need the index and are issued before it arrives. A
// gather: every output is written once, by one thread, so the sum has one order. With the norm a
// tile is a whole token, which stays in registers, laid out as in rms_norm: the same bits.
// See docs/kernels/moe_combine.md.
#pragma once
#include "kernels/moe_combine/moe_combine.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/fp8.cuh"
#include "tile/norm.cuh"
#include "tile/report.cuh"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kMoeCombineUnroll = kNormVectors;
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

// The thread's vectors of a token's sum, the first of them `first`. A token with an index outside is
// zeros, and reported. kShared: whether `params.shared` may be there.
template <bool kShared>
__device__ __forceinline__ void combine(const MoeCombineParams& params, int64_t token, int first,
                                        uint4 (&out)[kMoeCombineUnroll]) {
  const int vectors = static_cast<int>(params.width / kVector);
  const auto num_rows = static_cast<uint32_t>(params.tokens * params.top_k);
  uint4 shared[kMoeCombineUnroll], residual[kMoeCombineUnroll];
  if constexpr (kShared)
    load_vectors(row_of(params.shared, token, params.shared_stride), first, vectors, shared);
  load_vectors(row_of(params.residual, token, params.residual_stride), first, vectors, residual);

  float sum[kMoeCombineUnroll][kVector] = {};
  bool bad = false;
#pragma unroll 2
  for (int j = 0; j < params.top_k; ++j) {
    const int row = params.inverse[token * params.top_k + j];
    const bool outside = static_cast<uint32_t>(row) >= num_rows;  // or negative
    bad |= outside;
    uint4 y[kMoeCombineUnroll];
    load_vectors(outside ? nullptr : row_of(params.y, row, params.y_stride), first, vectors, y);
#pragma unroll
    for (int u = 0; u < kMoeCombineUnroll; ++u) accumulate(sum[u], y[u]);
  }
  if (bad && threadIdx.x == 0) report_error(params.error, DeviceError::kMoeCombineInverse);
#pragma unroll
  for (int u = 0; u < kMoeCombineUnroll; ++u) {
    if constexpr (kShared) accumulate(sum[u], shared[u]);
    accumulate(sum[u], residual[u]);
    out[u] = bad ? uint4{} : pack(sum[u]);
  }
}

// Writes the thread's vectors of a row.
__device__ __forceinline__ void store_vectors(const uint4 (&values)[kMoeCombineUnroll], void* to,
                                              int64_t row, int first, int vectors) {
#pragma unroll
  for (int u = 0; u < kMoeCombineUnroll; ++u) {
    const int v = first + u * blockDim.x;
    if (v < vectors) ptx::store_streaming(static_cast<uint4*>(to) + row * vectors + v, values[u]);
  }
}

__global__ void __launch_bounds__(kMoeCombineMaxThreads)
    moe_combine_kernel(MoeCombineParams params, int row_tiles) {
  const int vectors = static_cast<int>(params.width / kVector);
  const int64_t num_tiles = params.tokens * row_tiles;

  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int64_t token = row_tiles == 1 ? tile : tile / row_tiles;
    const int first =
        static_cast<int>(tile - token * row_tiles) * blockDim.x * kMoeCombineUnroll + threadIdx.x;
    uint4 x[kMoeCombineUnroll];
    combine<true>(params, token, first, x);
    store_vectors(x, params.out, token, first, vectors);
  }
}

template <bool kFp8>
__global__ void __maxnreg__(kMoeCombineNormRegisters)
    moe_combine_norm_kernel(MoeCombineNormParams params) {
  __shared__ float sums[2][32];
  __shared__ uint32_t maxima[32];  // all have read them when the next token's sums have met
  const MoeCombineParams& c = params.combine;
  const int width = static_cast<int>(c.width), vectors = width / kVector;

  ptx::grid_launch_dependents();
  prefetch_norm_weight(params.weight, vectors);
  ptx::grid_dependency_wait();
  uint4 weight[kNormVectors];
  load_norm_weight(params.weight, vectors, weight);
  int parity = 0;
  for (int64_t token = blockIdx.x; token < c.tokens; token += gridDim.x, parity ^= 1) {
    uint4 x[kNormVectors], y[kNormVectors];
    combine<false>(c, token, threadIdx.x, x);
    store_vectors(x, c.out, token, threadIdx.x, vectors);
    float sum = 0.f;
#pragma unroll
    for (int u = 0; u < kNormVectors; ++u) add_squares(x[u], sum);
    const float factor = inverse_rms(sum, width, params.eps, sums[parity]);
#pragma unroll
    for (int u = 0; u < kNormVectors; ++u)
      y[u] = threadIdx.x + u * blockDim.x < vectors ? normalise(x[u], factor, weight[u]) : uint4{};
    if constexpr (kFp8)
      store_fp8_row<kScalingRow>(y, vectors, static_cast<uint2*>(params.q) + token * vectors,
                                 params.scale + token, maxima);
    else store_vectors(y, params.normed, token, threadIdx.x, vectors);
  }
}

}  // namespace l4k
