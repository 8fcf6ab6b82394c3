// RMSNorm of a row of bf16 that a CTA holds as tile/norm.h says: vector u * blockDim.x + threadIdx.x
// of it is s[u], zeros past the end.
#pragma once
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"
#include "tile/norm.h"
#include "tile/reduce.cuh"
#include "tile/vector.cuh"

namespace l4k {

// Before the wait: the weights go to L2 while the previous kernel still runs, for all CTAs by the first.
// Coherent, so harmless even where they are its result.
__device__ __forceinline__ void prefetch_norm_weight(const void* row, int vectors) {
  if (blockIdx.x == 0 && threadIdx.x == 0) ptx::bulk_prefetch(row, vectors * sizeof(uint4));
}

// The thread's vectors of a row of weights; what is past the end is not looked at.
__device__ __forceinline__ void load_norm_weight(const void* row, int vectors,
                                                 uint4 (&weight)[kNormVectors]) {
#pragma unroll
  for (int u = 0; u < kNormVectors; ++u) {
    const int v = threadIdx.x + u * blockDim.x;
    if (v < vectors) weight[u] = ptx::load_streaming(static_cast<const uint4*>(row) + v);
  }
}

// Adds the vector's to the thread's part of the sum of squares.
__device__ __forceinline__ void add_squares(uint4 s, float& sum) {
  float values[kVector];
  unpack(s, values);
#pragma unroll
  for (float value : values) sum += value * value;
}

// rsqrt(mean(s^2) + eps) of the threads' sums of squares. One barrier; `partials` as for cta_sum.
__device__ __forceinline__ float inverse_rms(float sum, int width, float eps, float* partials) {
  return rsqrtf(cta_sum(sum, partials) / width + eps);
}

// round(s * factor) * weight: two roundings, as in the model.
__device__ __forceinline__ uint4 normalise(uint4 s_raw, float factor, uint4 weight_raw) {
  float s[kVector];
  unpack(s_raw, s);
#pragma unroll
  for (float& value : s) value *= factor;
  Bf16Vector y{pack(s)}, weight{weight_raw};
#pragma unroll
  for (int i = 0; i < 4; ++i) y.pairs[i] = __hmul2_rn(y.pairs[i], weight.pairs[i]);
  return y.raw;
}

}  // namespace l4k
