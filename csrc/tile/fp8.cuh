// float32 to e4m3 with scale = amax / 448.
#pragma once
#include <cuda_fp8.h>

#include "ptx/memory.cuh"
#include "tile/reduce.cuh"
#include "tile/scaling.h"
#include "tile/vector.cuh"

namespace l4k {

constexpr float kFp8Max = 448.f;
constexpr float kFloatMax = 0x1.fffffep127f;

struct Fp8Scale {
  float scale, inverse;
};

// A block of zeros has scale 1; a NaN makes the scale and the block NaN.
__device__ __forceinline__ Fp8Scale fp8_scale(float amax) {
  float scale = amax / kFp8Max;
  if (scale == 0.f) scale = 1.f;
  float inverse = 1.f / scale;
  // Where the reciprocal of a subnormal scale overflows, 0 * inf would turn zeros into NaN.
  if (inverse > kFloatMax) inverse = kFloatMax;
  return {scale, inverse};
}

// Saturates; NaN stays NaN.
__device__ __forceinline__ uint2 to_fp8(const float (&v)[kVector], float inverse) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    pairs[i] = __nv_cvt_float2_to_fp8x2({v[2 * i] * inverse, v[2 * i + 1] * inverse},
                                        __NV_SATFINITE, __NV_E4M3);
  return {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
}

__device__ __forceinline__ uint2 to_fp8(uint4 raw, float inverse) {
  float v[kVector];
  unpack(raw, v);
  return to_fp8(v, inverse);
}

// Quantises vector `v` of a row with a scale for 128 elements, which sixteen neighbouring lanes hold.
template <typename Values>
__device__ __forceinline__ void store_fp8_vector(const Values& y, int v, int vectors, void* q,
                                                 float* scale) {
  constexpr int kLanes = kScaleBlock / kVector;
  const Fp8Scale s = fp8_scale(__uint_as_float(warp_max<kLanes>(amax_bits(y))));
  if (v >= vectors) return;
  if (threadIdx.x % kLanes == 0) scale[v / kLanes] = s.scale;
  ptx::store_streaming(static_cast<uint2*>(q) + v, to_fp8(y, s.inverse));
}

// Quantises a row that a CTA holds in registers: vector u * blockDim.x + threadIdx.x of it is y[u],
// eight bf16 (uint4) or float[8], zeros past the end. `q` and `scale` are those of the row. One
// barrier for kScalingRow, none for kScaling1x128; `partials` as for cta_max.
template <int kScaling, int kVectors, typename Values>
__device__ __forceinline__ void store_fp8_row(const Values (&y)[kVectors], int vectors, void* q,
                                              float* scale, uint32_t* partials) {
  Fp8Scale s;
  if constexpr (kScaling == kScalingRow) {
    uint32_t amax = 0;
#pragma unroll
    for (int u = 0; u < kVectors; ++u) amax = max(amax, amax_bits(y[u]));
    s = fp8_scale(__uint_as_float(cta_max(amax, partials)));
    if (threadIdx.x == 0) *scale = s.scale;
  }
#pragma unroll
  for (int u = 0; u < kVectors; ++u) {
    const int v = threadIdx.x + u * blockDim.x;
    if constexpr (kScaling == kScaling1x128) store_fp8_vector(y[u], v, vectors, q, scale);
    else if (v < vectors) ptx::store_streaming(static_cast<uint2*>(q) + v, to_fp8(y[u], s.inverse));
  }
}

}  // namespace l4k
