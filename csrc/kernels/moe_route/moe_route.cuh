// ids[t] = the k largest of logits[t], weights = sigmoid, and a stable counting sort of the T * k
// choices by expert. Three steps:
//
//   choose   a group of lanes holds a token's logits in registers and takes the maximum k times;
//            the tile's choices per expert are counted in shared memory
//   offset   choices per expert before this tile, and the start of each expert
//   rank     each warp owns consecutive choices; it counts them, takes its starting rows, and
//            places 32 at a time: equal experts of a group find each other with match.any
//
// Up to 64 tokens one CTA does all three. Beyond, choose is one launch and offset + rank another
// (each CTA adds up the counts of all tiles, 8 KB for 16 experts, instead of waiting on its
// neighbours). Only integers are added concurrently, so the result does not depend on timing.
//
// A shared expert takes no part in the sort: its rows are the last T, one a token, so choose writes
// whatever concerns it. "Choices" below are the routed ones, numbered token * top_k + j.
// See docs/kernels/moe_route.md.
#pragma once
#include <cuda_bf16.h>

#include "kernels/moe_route/moe_route.h"
#include "kernels/moe_route/plan.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/ordered.h"
#include "tile/reduce.cuh"
#include "tile/report.cuh"
#include "tile/vector.cuh"

namespace l4k {

static_assert(kRouteLogits == kVector);

struct __align__(16) RouteSmem {
  int totals[kRouteMaxExperts];             // choices of each expert in the whole batch
  int starts[kRouteMaxExperts];             // row of the tile's first choice of each expert
  int rows[kRouteWarps][kRouteMaxExperts];  // the same for each warp's choices
};

__device__ __forceinline__ void load_logits(const float* row, float (&v)[kRouteLogits]) {
  const uint4 a = ptx::load_streaming(row), b = ptx::load_streaming(row + 4);
  const uint32_t words[] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < kRouteLogits; ++i) v[i] = __uint_as_float(words[i]);
}

__device__ __forceinline__ void load_logits(const __nv_bfloat16* row, float (&v)[kRouteLogits]) {
  unpack(ptx::load_streaming(row), v);
}

// Keys of the experts [first, first + 8) of one token, 0 where there is none; true if one is NaN.
template <typename T>
__device__ __forceinline__ bool load_keys(const T* logits, int first, int num_experts, bool vectors,
                                          uint32_t (&keys)[kRouteLogits]) {
  float v[kRouteLogits];
  if (vectors && first < num_experts) {
    load_logits(logits + first, v);
  } else {
#pragma unroll
    for (int i = 0; i < kRouteLogits; ++i)
      v[i] = first + i < num_experts ? static_cast<float>(logits[first + i]) : 0.f;
  }
  bool nan = false;
#pragma unroll
  for (int i = 0; i < kRouteLogits; ++i) {
    nan |= v[i] != v[i];
    // + 0 turns -0 into 0: equal logits must have equal keys.
    keys[i] = first + i < num_experts ? ordered_key(__float_as_uint(v[i] + 0.f)) : 0;
  }
  return nan;
}

// The shared expert is the token's last choice, and the token one of its rows.
__device__ __forceinline__ void choose_shared(const MoeRouteParams& params, int token) {
  const int flat = token * params.choices() + params.top_k;
  const int row = static_cast<int>(params.tokens) * params.top_k + token;
  params.topk_ids[flat] = params.num_experts;
  params.topk_weights[flat] = params.row_scale[row] = 1.f;
  params.permutation[row] = flat;
  params.inverse[flat] = row;
}

// Chooses for the tokens [begin, end) and adds them to `counts`, a count per expert.
template <typename T>
__device__ __forceinline__ void choose(const MoeRouteParams& params, int begin, int end,
                                       int* counts) {
  const int lanes = lanes_per_token(params.num_experts), lane = threadIdx.x % lanes;
  const int first = lane * kRouteLogits, step = kRouteThreads / lanes;
  const uint32_t group = (lanes == 32 ? ~0u : (1u << lanes) - 1)
                         << (threadIdx.x % 32 / lanes * lanes);
  const bool vectors = params.num_experts % kRouteLogits == 0 &&
                       params.logits_stride * sizeof(T) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(params.logits) % 16 == 0;
  for (int base = begin; base < end; base += step) {
    const int token = base + threadIdx.x / lanes;
    const bool valid = token < end;
    uint32_t keys[kRouteLogits] = {};
    bool nan = false;
    if (valid)
      nan = load_keys(static_cast<const T*>(params.logits) + token * params.logits_stride, first,
                      params.num_experts, vectors, keys);
    nan = (__ballot_sync(0xffffffff, nan) & group) != 0;
    if (nan && lane == 0) report_error(params.error, DeviceError::kMoeRouteLogits);

    for (int j = 0; j < params.top_k; ++j) {
      uint32_t key = 0;
      int expert = 0;
#pragma unroll
      for (int i = 0; i < kRouteLogits; ++i)
        if (keys[i] > key) key = keys[i], expert = first + i;
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
        const uint32_t other_key = __shfl_xor_sync(0xffffffff, key, distance);
        const int other = __shfl_xor_sync(0xffffffff, expert, distance);
        if (other_key > key || (other_key == key && other < expert))
          key = other_key, expert = other;
      }
      const float logit = __uint_as_float(ordered_bits(key));
      const float weight = nan ? __int_as_float(0x7fffffff) : 1.f / (1.f + expf(-logit));
      if (nan) expert = j;
#pragma unroll
      for (int i = 0; i < kRouteLogits; ++i)
        if (first + i == expert) keys[i] = 0;
      if (valid && lane == j % lanes) {
        params.topk_ids[token * params.choices() + j] = expert;
        params.topk_weights[token * params.choices() + j] = weight;
        atomicAdd(counts + expert, 1);
      }
    }
    if (params.shared_expert && valid && lane == params.top_k % lanes) choose_shared(params, token);
  }
}

// starts[e] += number of choices of experts below e. One warp; four neighbouring experts per lane,
// then the next 128.
__device__ __forceinline__ void add_offsets(const MoeRouteParams& params, RouteSmem& smem) {
  int below = 0;
#pragma unroll
  for (int half = 0; half < kRouteMaxExperts / 128; ++half) {
    const int first = 128 * half + 4 * threadIdx.x;
    const int4 totals = *reinterpret_cast<const int4*>(smem.totals + first);
    int4& starts = *reinterpret_cast<int4*>(smem.starts + first);
    const int sum = totals.x + totals.y + totals.z + totals.w;
    const int inclusive = warp_running_sum(sum);
    int4 offsets;
    offsets.x = below + inclusive - sum;
    offsets.y = offsets.x + totals.x;
    offsets.z = offsets.y + totals.y;
    offsets.w = offsets.z + totals.z;
    starts = {starts.x + offsets.x, starts.y + offsets.y, starts.z + offsets.z,
              starts.w + offsets.w};
    const int values[] = {offsets.x, offsets.y, offsets.z, offsets.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (blockIdx.x == 0 && first + i < params.num_experts)
        params.expert_offsets[first + i] = values[i];
    below += __shfl_sync(0xffffffff, inclusive, 31);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    int* ends = params.expert_offsets + params.num_experts;
    ends[0] = below;
    if (params.shared_expert) ends[1] = below + static_cast<int>(params.tokens);
  }
}

// Lanes of the warp with the same expert as this one, among those with a choice.
__device__ __forceinline__ uint32_t peers_of(bool valid, int expert) {
  // Lanes without a choice only find each other.
  return __match_any_sync(0xffffffff, valid ? expert : -1);
}

// Places the choices [begin, end) of this tile, given starts. Called by the whole CTA.
__device__ __forceinline__ void rank(const MoeRouteParams& params, int begin, int end,
                                     RouteSmem& smem) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int stride = choices_per_warp(end - begin), warps = ceil_div(end - begin, stride);
  const int from = begin + warp * stride, to = min(from + stride, end);
  const auto flat = [&](int choice) {
    return flat_choice(choice, params.top_k, params.shared_expert);
  };
  int* rows = smem.rows[warp];
  if (warp < warps) {
    for (int expert = lane; expert < params.num_experts; expert += 32) rows[expert] = 0;
    __syncwarp();
#pragma unroll 1
    for (int base = from; base < to; base += 32) {
      const int choice = base + lane;
      const bool valid = choice < to;
      const int expert = valid ? params.topk_ids[flat(choice)] : 0;
      const uint32_t peers = peers_of(valid, expert);
      if (valid && lane == __ffs(peers) - 1) rows[expert] += __popc(peers);
      __syncwarp();
    }
  }
  __syncthreads();
  if (threadIdx.x < params.num_experts) {
    int row = smem.starts[threadIdx.x];
    for (int w = 0; w < warps; ++w) {
      const int count = smem.rows[w][threadIdx.x];
      smem.rows[w][threadIdx.x] = row;
      row += count;
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int base = from; base < to; base += 32) {
    const int choice = base + lane;
    const bool valid = choice < to;
    const int place = flat(choice), expert = valid ? params.topk_ids[place] : 0;
    const float weight = valid ? params.topk_weights[place] : 0.f;
    const uint32_t peers = peers_of(valid, expert);
    const int row = rows[expert] + __popc(peers & ((1u << lane) - 1));
    __syncwarp();
    if (valid) {
      if (lane == __ffs(peers) - 1) rows[expert] = row + __popc(peers);
      params.permutation[row] = place;
      params.inverse[place] = row;
      params.row_scale[row] = weight;
    }
    __syncwarp();
  }
}

// All three steps, at most kRouteOneLaunchTokens tokens, one CTA.
template <typename T>
__global__ void __launch_bounds__(kRouteThreads, 1) moe_route_small_kernel(MoeRouteParams params) {
  __shared__ RouteSmem smem;
  if (threadIdx.x < kRouteMaxExperts) smem.totals[threadIdx.x] = smem.starts[threadIdx.x] = 0;
  __syncthreads();
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  choose<T>(params, 0, static_cast<int>(params.tokens), smem.totals);
  __syncthreads();
  if (threadIdx.x < 32) add_offsets(params, smem);
  // rank() has a barrier before it reads the starts.
  rank(params, 0, static_cast<int>(params.tokens) * params.top_k, smem);
}

// First launch: tile blockIdx.x chooses, and leaves its counts in the workspace.
template <typename T>
__global__ void __launch_bounds__(kRouteThreads, 1)
    moe_route_choose_kernel(MoeRouteParams params, RoutePlan plan) {
  __shared__ int counts[kRouteMaxExperts];
  if (threadIdx.x < kRouteMaxExperts) counts[threadIdx.x] = 0;
  __syncthreads();
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int begin = blockIdx.x * plan.tile_tokens;
  choose<T>(params, begin, min(begin + plan.tile_tokens, static_cast<int>(params.tokens)), counts);
  __syncthreads();
  if (threadIdx.x < params.num_experts)
    params.counts[blockIdx.x * params.num_experts + threadIdx.x] = counts[threadIdx.x];
}

// Second launch: offsets from the counts of all tiles, then the rows of this tile's choices.
__global__ void __launch_bounds__(kRouteThreads, 1)
    moe_route_rank_kernel(MoeRouteParams params, RoutePlan plan) {
  __shared__ RouteSmem smem;
  if (threadIdx.x < kRouteMaxExperts) smem.totals[threadIdx.x] = smem.starts[threadIdx.x] = 0;
  __syncthreads();
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int columns = round_up(params.num_experts, 32);
  const int expert = threadIdx.x % columns, slice = threadIdx.x / columns;
  const int slices = kRouteThreads / columns;
  if (expert < params.num_experts && slice < slices) {
    int all = 0, before = 0;
#pragma unroll 8
    for (int tile = slice; tile < plan.tiles; tile += slices) {
      const int count = params.counts[tile * params.num_experts + expert];
      all += count;
      if (tile < static_cast<int>(blockIdx.x)) before += count;
    }
    atomicAdd(&smem.totals[expert], all);
    atomicAdd(&smem.starts[expert], before);
  }
  __syncthreads();
  if (threadIdx.x < 32) add_offsets(params, smem);
  const int begin = blockIdx.x * plan.tile_tokens;
  const int end = min(begin + plan.tile_tokens, static_cast<int>(params.tokens));
  rank(params, begin * params.top_k, end * params.top_k, smem);
}

}  // namespace l4k
