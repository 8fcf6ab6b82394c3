// What e4m3 keys and values are computed in: f16 holds every e4m3 exactly, and one instruction
// converts two. Its range is narrow, so rows of bf16 are scaled before they become f16.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "ptx/mma.cuh"
#include "tile/vector.cuh"

namespace l4k {

// Eight e4m3 values; NaN stays NaN.
__device__ __forceinline__ uint4 fp8_to_f16(uint2 raw) {
  uint4 out;
  ptx::e4m3_to_f16(raw.x, out.x, out.y);
  ptx::e4m3_to_f16(raw.y, out.z, out.w);
  return out;
}

// Eight bf16 values times `factor`.
__device__ __forceinline__ uint4 bf16_to_f16(uint4 raw, float factor) {
  float v[kVector];
  unpack(raw, v);
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    pairs[i] = pack_pair<__half>(v[2 * i] * factor, v[2 * i + 1] * factor);
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// A power of two and its inverse.
struct PowerOfTwo {
  float up, down;
};

// What brings a row's largest magnitude (the bits of a float32) near 2^8, where every bf16 is exact
// in f16 but for values 2^-22 of the largest. 1 for a row of zeros, or with an infinity or NaN in
// it: such a row's scores are infinite or NaN in f16 as well.
__device__ __forceinline__ PowerOfTwo f16_range(uint32_t amax) {
  const uint32_t exponent = amax >> 23;
  const uint32_t field = exponent == 0 || exponent == 255 ? 127 : min(262 - exponent, 253u);
  return {__uint_as_float(field << 23), __uint_as_float((254 - field) << 23)};
}

}  // namespace l4k
