// float32 to e4m3 with scale = amax / 448.
#pragma once
#include <cuda_fp8.h>

#include <cfloat>

#include "tile/scaling.h"
#include "tile/vector.cuh"

namespace l4k {

constexpr float kFp8Max = 448.f;

struct Fp8Scale {
  float scale, inverse;
};

// A block of zeros has scale 1; a NaN makes the scale and the block NaN.
__device__ __forceinline__ Fp8Scale fp8_scale(float amax) {
  float scale = amax / kFp8Max;
  if (scale == 0.f) scale = 1.f;
  float inverse = 1.f / scale;
  // Where the reciprocal of a subnormal scale overflows, 0 * inf would turn zeros into NaN.
  if (inverse > FLT_MAX) inverse = FLT_MAX;
  return {scale, inverse};
}

__device__ __forceinline__ float bf16_bits_to_float(uint32_t bits) {
  return __uint_as_float(bits << 16);
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

}  // namespace l4k
