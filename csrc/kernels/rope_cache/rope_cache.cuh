// Heads of q and k are rotated, normalised and scaled (tile/rope.cuh); k and v go to their slot of the
// paged cache, q to a dense tensor. One rounding at the end.
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
#include "tile/report.cuh"
#include "tile/rope.cuh"

namespace l4k {

constexpr int kRopeThreads = 128;
constexpr int kRopeCtas = 8;                                // per SM: 64 registers
constexpr int kRopeVectors = 4;                             // per lane
constexpr int kRopeHeads = kRopeVectors * 32 / kHeadLanes;  // per warp

// The lane's part of one head of K or V.
template <bool kFp8>
__device__ __forceinline__ void store_cache(const RopeCacheParams& params, int64_t slot,
                                            int kv_head, bool is_value, float (&x)[kVector]) {
  void* cache = is_value ? params.v_cache : params.k_cache;
  const float* scales = is_value ? params.v_scale : params.k_scale;
  const int64_t v = (slot * params.kv_heads + kv_head) * kHeadLanes + threadIdx.x % kHeadLanes;
  ptx::store_streaming(static_cast<CacheVector<kFp8>*>(cache) + v,
                       to_cache<kFp8>(x, scales, kv_head));
}

template <bool kRotate, bool kFp8>
__global__ void __launch_bounds__(kRopeThreads, kRopeCtas)
    rope_cache_kernel(RopeCacheParams params) {
  const int half = threadIdx.x % 32 / kHeadLanes, lane = threadIdx.x % kHeadLanes;
  const int heads = params.num_heads + 2 * params.kv_heads;
  const uint32_t groups = ceil_div(heads, kRopeHeads);
  const uint32_t units = static_cast<uint32_t>(params.tokens) * groups;
  const uint32_t warps = gridDim.x * (kRopeThreads / 32);

  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
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
      raw[u] = head < heads ? ptx::load_streaming(heads_in + head * kHeadLanes) : uint4{};
    }
    const int64_t position = params.positions[token], slot = params.slot_mapping[token];
    const bool bad_slot = slot < -1 || slot >= params.num_slots;
    const bool bad = position < 0 || bad_slot;
    if (bad && threadIdx.x % 32 == 0)
      report_error(params.error, bad_slot ? DeviceError::kRopeCacheSlotMapping
                                          : DeviceError::kRopeCachePositions);
    RopeAngles angles;
    if constexpr (kRotate) angles = load_angles(params.rule, position < 0 ? 0 : position);
    const float q_factor = bad ? 0.f : temperature(params.rule, position);

#pragma unroll
    for (int u = 0; u < kRopeVectors; ++u) {
      const int head = first + 2 * u, kv_head = head - params.num_heads;
      const bool is_value = kv_head >= params.kv_heads;
      float x[kVector];
      unpack(bad ? uint4{} : raw[u], x);
      finish_head(params.rule, angles, kRotate, is_value, kv_head < 0 ? q_factor : 1.f, x);

      if (head >= heads) continue;
      if (kv_head < 0) {
        uint4* q = static_cast<uint4*>(params.q) + (token * params.num_heads + head) * kHeadLanes;
        ptx::store_streaming(q + lane, pack(x));
      } else if (slot >= 0 && !bad_slot) {
        store_cache<kFp8>(params, slot, is_value ? kv_head - params.kv_heads : kv_head, is_value,
                          x);
      }
    }
  }
}

}  // namespace l4k
