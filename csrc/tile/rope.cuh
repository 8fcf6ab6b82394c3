// One head of the fused QKV projection by sixteen lanes, eight elements each:
//   (a, b) -> (a cos - b sin, a sin + b cos) for each adjacent pair of q and k,
//   then x * rsqrt(mean(x^2) + eps), then for q x * temperature(position); to the cache's type.
// The kernels that share it give the same bits.
#pragma once
#include <type_traits>

#include "tile/fp8.cuh"
#include "tile/reduce.cuh"
#include "tile/rope.h"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kHeadLanes = kHeadDim / kVector;

// Positions beyond 32 bits are legal but rare, and 64-bit division is slow.
__device__ __forceinline__ uint64_t divide(uint64_t a, uint32_t b) {
  return a >> 32 ? a / b : static_cast<uint32_t>(a) / b;
}

// 1 + attn_scale * ln(1 + floor((position + 1) / floor_scale))
__device__ __forceinline__ float temperature(const HeadRule& rule, int64_t position) {
  if (rule.attn_scale == 0.f) return 1.f;
  const uint64_t steps = divide(static_cast<uint64_t>(position) + 1, rule.floor_scale);
  return 1.f + rule.attn_scale * log1pf(static_cast<float>(steps));
}

struct RopeAngles {
  float cosines[4], sines[4];  // of the lane's four pairs
};

// Of a position that is not negative.
__device__ __forceinline__ RopeAngles load_angles(const HeadRule& rule, int64_t position) {
  const uint64_t rows = rule.table_rows;
  const uint64_t row = position - divide(position, static_cast<uint32_t>(rows)) * rows;
  const float4* cosines =
      reinterpret_cast<const float4*>(rule.cos_sin + row * kHeadDim) + threadIdx.x % kHeadLanes;
  const float4 c = cosines[0], s = cosines[kHeadLanes];
  return {{c.x, c.y, c.z, c.w}, {s.x, s.y, s.z, s.w}};
}

__device__ __forceinline__ void rotate(const RopeAngles& angles, float (&x)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * angles.cosines[i] - b * angles.sines[i];
    x[2 * i + 1] = a * angles.sines[i] + b * angles.cosines[i];
  }
}

// Rotated, if the layer does that, and normalised unless it is a value, then times `factor`. By
// whole warps.
__device__ __forceinline__ void finish_head(const HeadRule& rule, const RopeAngles& angles,
                                            bool rotates, bool is_value, float factor,
                                            float (&x)[kVector]) {
  if (rotates && !is_value) rotate(angles, x);
  if (rule.qk_norm_eps >= 0.f) {
    float sum = 0.f;
#pragma unroll
    for (float value : x) sum += value * value;
    sum = warp_sum<kHeadLanes>(sum);
    if (!is_value) factor *= rsqrtf(sum * (1.f / kHeadDim) + rule.qk_norm_eps);
  }
#pragma unroll
  for (float& value : x) value *= factor;
}

// A lane's part of a head in the cache.
template <bool kFp8>
using CacheVector = std::conditional_t<kFp8, uint2, uint4>;

// `scales` [Hkv] or null: 1.
template <bool kFp8>
__device__ __forceinline__ CacheVector<kFp8> to_cache(const float (&x)[kVector],
                                                      const float* scales, int kv_head) {
  if constexpr (kFp8) return to_fp8(x, scales == nullptr ? 1.f : 1.f / scales[kv_head]);
  else return pack(x);
}

}  // namespace l4k
