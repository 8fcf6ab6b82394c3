// Per head of q and k:  (a, b) -> (a cos - b sin, a sin + b cos) for each adjacent pair,
//                       then x * rsqrt(mean(x^2) + eps), then for q x * temperature(position);
// k and v go to their slot of the paged cache, q to a dense tensor. One rounding at the end.
//
// A head of 128 elements is 16 vectors of 16 bytes, half a warp; a warp takes kRopeHeads heads of
// one token and has all its loads in flight at once. Warps share nothing, so there is no barrier:
// a single token spreads over as many warps as it has groups of heads, and thousands of tokens fill
// the GPU with independent loads. A lane keeps the cosines and sines of its four pairs for all its
// heads. See docs/kernels/rope_cache.md.
#pragma once
#include "kernels/rope_cache/rope_cache.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/base.h"
#include "tile/fp8.cuh"
#include "tile/reduce.cuh"
#include "tile/report.cuh"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kRopeThreads = 128;
constexpr int kRopeCtas = 8;                                // per SM: 64 registers
constexpr int kRopeLanes = kHeadDim / kVector;              // per head
constexpr int kRopeVectors = 4;                             // per lane
constexpr int kRopeHeads = kRopeVectors * 32 / kRopeLanes;  // per warp

// Positions beyond 32 bits are legal but rare, and 64-bit division is slow.
__device__ __forceinline__ uint64_t divide(uint64_t a, uint32_t b) {
  return a >> 32 ? a / b : static_cast<uint32_t>(a) / b;
}

// 1 + attn_scale * ln(1 + floor((position + 1) / floor_scale))
__device__ __forceinline__ float temperature(const RopeCacheParams& params, int64_t position) {
  if (params.attn_scale == 0.f) return 1.f;
  const uint64_t steps = divide(static_cast<uint64_t>(position) + 1, params.floor_scale);
  return 1.f + params.attn_scale * log1pf(static_cast<float>(steps));
}

struct RopeAngles {
  float cosines[4], sines[4];  // of the lane's four pairs
};

__device__ __forceinline__ RopeAngles load_angles(const RopeCacheParams& params, int64_t position) {
  const uint64_t rows = params.table_rows;
  const uint64_t row = position - divide(position, static_cast<uint32_t>(rows)) * rows;
  const float4* cosines =
      reinterpret_cast<const float4*>(params.cos_sin + row * kHeadDim) + threadIdx.x % kRopeLanes;
  const float4 c = cosines[0], s = cosines[kRopeLanes];
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

// The lane's part of one head of K or V.
template <bool kFp8>
__device__ __forceinline__ void store_cache(const RopeCacheParams& params, int64_t slot,
                                            int kv_head, bool is_value, float (&x)[kVector]) {
  void* cache = is_value ? params.v_cache : params.k_cache;
  const int64_t v = (slot * params.kv_heads + kv_head) * kRopeLanes + threadIdx.x % kRopeLanes;
  if constexpr (kFp8) {
    const float* scales = is_value ? params.v_scale : params.k_scale;
    const float inverse = scales == nullptr ? 1.f : 1.f / scales[kv_head];
    ptx::store_streaming(static_cast<uint2*>(cache) + v, to_fp8(x, inverse));
  } else {
    ptx::store_streaming(static_cast<uint4*>(cache) + v, pack(x));
  }
}

template <bool kRotate, bool kFp8>
__global__ void __launch_bounds__(kRopeThreads, kRopeCtas)
    rope_cache_kernel(RopeCacheParams params) {
  const int half = threadIdx.x % 32 / kRopeLanes, lane = threadIdx.x % kRopeLanes;
  const int heads = params.num_heads + 2 * params.kv_heads;
  const uint32_t groups = ceil_div(heads, kRopeHeads);
  const uint32_t units = static_cast<uint32_t>(params.tokens) * groups;
  const uint32_t warps = gridDim.x * (kRopeThreads / 32);

  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  for (uint32_t unit = (blockIdx.x * kRopeThreads + threadIdx.x) / 32; unit < units;
       unit += warps) {
    const int64_t token = unit / groups;
    const int first = (unit - static_cast<uint32_t>(token) * groups) * kRopeHeads + half;
    const uint4* heads_in =
        static_cast<const uint4*>(params.qkv) + token * (params.qkv_stride / kVector) + lane;
    uint4 raw[kRopeVectors];
#pragma unroll
    for (int u = 0; u < kRopeVectors; ++u) {
      const int head = first + 2 * u;
      raw[u] = head < heads ? ptx::load_streaming(heads_in + head * kRopeLanes) : uint4{};
    }
    const int64_t position = params.positions[token], slot = params.slot_mapping[token];
    const bool bad_slot = slot < -1 || slot >= params.num_slots;
    const bool bad = position < 0 || bad_slot;
    if (bad && threadIdx.x % 32 == 0)
      report_error(params.error, bad_slot ? DeviceError::kRopeCacheSlotMapping
                                          : DeviceError::kRopeCachePositions);
    RopeAngles angles;
    if constexpr (kRotate) angles = load_angles(params, position < 0 ? 0 : position);
    const float q_factor = bad ? 0.f : temperature(params, position);

#pragma unroll
    for (int u = 0; u < kRopeVectors; ++u) {
      const int head = first + 2 * u, kv_head = head - params.num_heads;
      const bool is_value = kv_head >= params.kv_heads;
      float x[kVector];
      unpack(bad ? uint4{} : raw[u], x);
      if (kRotate && !is_value) rotate(angles, x);
      float factor = kv_head < 0 ? q_factor : 1.f;
      if (params.qk_norm_eps >= 0.f) {
        float sum = 0.f;
#pragma unroll
        for (float value : x) sum += value * value;
        sum = warp_sum<kRopeLanes>(sum);
        if (!is_value) factor *= rsqrtf(sum * (1.f / kHeadDim) + params.qk_norm_eps);
      }
#pragma unroll
      for (float& value : x) value *= factor;

      if (head >= heads) continue;
      if (kv_head < 0) {
        uint4* q = static_cast<uint4*>(params.q) + (token * params.num_heads + head) * kRopeLanes;
        ptx::store_streaming(q + lane, pack(x));
      } else if (slot >= 0 && !bad_slot) {
        store_cache<kFp8>(params, slot, is_value ? kv_head - params.kv_heads : kv_head, is_value,
                          x);
      }
    }
  }
}

}  // namespace l4k
