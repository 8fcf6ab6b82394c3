// Eight bf16 values in one 16-byte register quad: the unit of every streaming kernel.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace l4k {

constexpr int kVector = 8;  // bf16 elements

union Bf16Vector {
  uint4 raw;
  uint32_t words[4];
  __nv_bfloat162 pairs[4];
};

// Two values rounded to T, the first in the lower half.
template <typename T = __nv_bfloat16>
__device__ __forceinline__ uint32_t pack_pair(float a, float b) {
  const auto pair = [&] {
    if constexpr (std::is_same_v<T, __half>) return __floats2half2_rn(a, b);
    else return __floats2bfloat162_rn(a, b);
  }();
  return reinterpret_cast<const uint32_t&>(pair);
}

// One instruction a value: a bf16 is the upper half of a float32. (The intrinsic takes two for the
// upper one of a pair.)
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}

__device__ __forceinline__ void unpack(uint4 raw, float (&v)[kVector]) {
  Bf16Vector vector{raw};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack_pair(vector.words[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ uint4 pack(const float (&v)[kVector]) {
  Bf16Vector vector;
#pragma unroll
  for (int i = 0; i < 4; ++i) vector.words[i] = pack_pair(v[2 * i], v[2 * i + 1]);
  return vector.raw;
}

// The sum, rounded once: the same as adding in float32 and rounding.
__device__ __forceinline__ uint4 add(uint4 a_raw, uint4 b_raw) {
  Bf16Vector a{a_raw}, b{b_raw}, sum;
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.pairs[i] = __hadd2_rn(a.pairs[i], b.pairs[i]);
  return sum.raw;
}

// Largest magnitude, as the bits of a float32; NaN beats everything.
__device__ __forceinline__ uint32_t amax_bits(uint4 raw) {
  Bf16Vector v{raw};
  const Bf16Vector maxima{
      .pairs = {__hmax2_nan(__hmax2_nan(__habs2(v.pairs[0]), __habs2(v.pairs[1])),
                            __hmax2_nan(__habs2(v.pairs[2]), __habs2(v.pairs[3])))}};
  const float2 m = unpack_pair(maxima.words[0]);
  return max(__float_as_uint(m.x), __float_as_uint(m.y));
}

__device__ __forceinline__ uint32_t amax_bits(const float (&v)[kVector]) {
  uint32_t m = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) m = max(m, __float_as_uint(v[i]) & 0x7fffffff);
  return m;
}

}  // namespace l4k
