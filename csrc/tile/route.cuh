// From logits to experts, and a stable counting sort of the choices by expert, by one CTA:
//
//   choose   a group of lanes holds a token's logits in registers and takes the maximum k times
//   offset   choices per expert before this CTA's, and the start of each expert
//   rank     each warp owns consecutive choices; it counts them, takes its starting rows, and
//            places 32 at a time: equal experts of a group find each other with match.any
//
// Only integers are added concurrently, so the result does not depend on timing. A shared expert takes
// no part in the sort: its rows are the last T, one a token, so choose writes whatever concerns it.
// "Choices" below are the routed ones, numbered token * top_k + j.
#pragma once
#include "tile/ordered.h"
#include "tile/reduce.cuh"
#include "tile/report.cuh"
#include "tile/route.h"

namespace l4k {

template <int kThreads>
struct __align__(16) RouteSmem {
  int totals[kRouteMaxExperts];               // choices of each expert in the whole batch
  int starts[kRouteMaxExperts];               // row of the CTA's first choice of each expert
  int rows[kThreads / 32][kRouteMaxExperts];  // the same for each warp's choices
};

// Keys of the experts [first, first + 8) of one token, 0 where there is none; true if one is NaN.
template <typename Logits>
__device__ __forceinline__ bool load_keys(const Logits& logits, int token, int first,
                                          int num_experts, uint32_t (&keys)[kRouteLogits]) {
  float v[kRouteLogits] = {};
  logits.load(token, first, v);
  bool nan = false;
#pragma unroll
  for (int i = 0; i < kRouteLogits; ++i) {
    const bool exists = first + i < num_experts;
    nan |= exists && v[i] != v[i];
    // + 0 turns -0 into 0: equal logits must have equal keys.
    keys[i] = exists ? ordered_key(__float_as_uint(v[i] + 0.f)) : 0;
  }
  return nan;
}

// The shared expert is the token's last choice, and the token one of its rows.
__device__ __forceinline__ void choose_shared(const Routing& routing, int token) {
  const int flat = token * routing.choices() + routing.top_k;
  const int row = static_cast<int>(routing.tokens) * routing.top_k + token;
  routing.topk_ids[flat] = routing.num_experts;
  routing.topk_weights[flat] = routing.row_scale[row] = 1.f;
  routing.permutation[row] = flat;
  routing.inverse[flat] = row;
}

// Chooses for the tokens [begin, end) and adds them to `counts`, a count per expert, or null.
// `logits.load(token, first, v)` gives the logits of the experts [first, first + 8), and anything for
// those past the last.
template <int kThreads, typename Logits>
__device__ __forceinline__ void choose(const Routing& routing, int begin, int end,
                                       const Logits& logits, int* counts) {
  const int lanes = lanes_per_token(routing.num_experts), lane = threadIdx.x % lanes;
  const int first = lane * kRouteLogits, step = kThreads / lanes;
  const uint32_t group = (lanes == 32 ? ~0u : (1u << lanes) - 1)
                         << (threadIdx.x % 32 / lanes * lanes);
  for (int base = begin; base < end; base += step) {
    const int token = base + threadIdx.x / lanes;
    const bool valid = token < end;
    uint32_t keys[kRouteLogits] = {};
    bool nan = false;
    if (valid) nan = load_keys(logits, token, first, routing.num_experts, keys);
    nan = (__ballot_sync(0xffffffff, nan) & group) != 0;
    if (nan && lane == 0) report_error(routing.error, DeviceError::kMoeRouteLogits);

    for (int j = 0; j < routing.top_k; ++j) {
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
        routing.topk_ids[token * routing.choices() + j] = expert;
        routing.topk_weights[token * routing.choices() + j] = weight;
        if (counts != nullptr) atomicAdd(counts + expert, 1);
      }
    }
    if (routing.shared_expert && valid && lane == routing.top_k % lanes)
      choose_shared(routing, token);
  }
}

// starts[e] += number of choices of experts below e. One warp; four neighbouring experts per lane,
// then the next 128. The offsets of all experts are results, which one CTA writes.
template <int kThreads>
__device__ __forceinline__ void add_offsets(const Routing& routing, RouteSmem<kThreads>& smem,
                                            bool writes) {
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
      if (writes && first + i < routing.num_experts) routing.expert_offsets[first + i] = values[i];
    below += __shfl_sync(0xffffffff, inclusive, 31);
  }
  if (writes && threadIdx.x == 0) {
    int* ends = routing.expert_offsets + routing.num_experts;
    ends[0] = below;
    if (routing.shared_expert) ends[1] = below + static_cast<int>(routing.tokens);
  }
}

constexpr int kRankGroups = 4;  // of 32 choices, whose ids are on their way together

// A lane's choices of the groups from `first` on: its place among all choices, and the expert; -1 from
// `end` on.
struct RankChoices {
  int places[kRankGroups], experts[kRankGroups];

  __device__ __forceinline__ RankChoices(const Routing& routing, int first, int end) {
#pragma unroll
    for (int u = 0; u < kRankGroups; ++u) {
      const int choice = first + 32 * u + threadIdx.x % 32;
      places[u] = flat_choice(choice, routing.top_k, routing.shared_expert);
      experts[u] = choice < end ? routing.topk_ids[places[u]] : -1;
    }
  }
};

// Lanes of the warp with the same expert; those without a choice only find each other.
__device__ __forceinline__ uint32_t peers_of(int expert) {
  return __match_any_sync(0xffffffff, expert);
}

// Adds the choices [from, to) of a warp to `rows`, a count per expert.
__device__ __forceinline__ void count_choices(const Routing& routing, int from, int to, int* rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int base = from; base < to; base += 32 * kRankGroups) {
    const RankChoices own(routing, base, to);
#pragma unroll
    for (int u = 0; u < kRankGroups; ++u) {
      if (base + 32 * u >= to) break;
      const int expert = own.experts[u];
      const uint32_t peers = peers_of(expert);
      if (expert >= 0 && lane == __ffs(peers) - 1) rows[expert] += __popc(peers);
      __syncwarp();
    }
  }
}

// Places the choices [from, to) of a warp: `rows` has the next row of each expert.
__device__ __forceinline__ void place_choices(const Routing& routing, int from, int to, int* rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int base = from; base < to; base += 32 * kRankGroups) {
    const RankChoices own(routing, base, to);
    float weights[kRankGroups];
#pragma unroll
    for (int u = 0; u < kRankGroups; ++u)
      weights[u] = own.experts[u] < 0 ? 0.f : routing.topk_weights[own.places[u]];
#pragma unroll
    for (int u = 0; u < kRankGroups; ++u) {
      if (base + 32 * u >= to) break;
      const int place = own.places[u], expert = own.experts[u];
      const uint32_t peers = peers_of(expert);
      const int row = expert < 0 ? 0 : rows[expert] + __popc(peers & ((1u << lane) - 1));
      __syncwarp();
      if (expert >= 0) {
        if (lane == __ffs(peers) - 1) rows[expert] = row + __popc(peers);
        routing.permutation[row] = place;
        routing.inverse[place] = row;
        routing.row_scale[row] = weights[u];
      }
      __syncwarp();
    }
  }
}

// Places the choices [begin, end): all there are, whose offsets it writes too, or those of a tile, given
// starts. Called by the whole CTA.
template <bool kAll, int kThreads>
__device__ __forceinline__ void rank(const Routing& routing, int begin, int end,
                                     RouteSmem<kThreads>& smem) {
  static_assert(kThreads >= kRouteMaxExperts);
  const int warp = threadIdx.x / 32, own = threadIdx.x;
  const int stride = choices_per_warp(end - begin, kThreads / 32);
  const int warps = ceil_div(end - begin, stride);
  const int from = begin + warp * stride, to = min(from + stride, end);
  int* rows = smem.rows[warp];
  if (warp < warps) {
    for (int expert = threadIdx.x % 32; expert < routing.num_experts; expert += 32)
      rows[expert] = 0;
    __syncwarp();
    count_choices(routing, from, to, rows);
  }
  __syncthreads();
  if constexpr (kAll) {
    if (own < kRouteMaxExperts) {
      int total = 0;
      if (own < routing.num_experts)
        for (int w = 0; w < warps; ++w) total += smem.rows[w][own];
      smem.totals[own] = total;
      smem.starts[own] = 0;
    }
    __syncthreads();
    if (threadIdx.x < 32) add_offsets(routing, smem, true);
    __syncthreads();
  }
  if (own < routing.num_experts) {
    int row = smem.starts[own];
    for (int w = 0; w < warps; ++w) {
      const int count = smem.rows[w][own];
      smem.rows[w][own] = row;
      row += count;
    }
  }
  __syncthreads();
  place_choices(routing, from, to, rows);
}

// All three steps for all tokens, by one CTA.
template <int kThreads, typename Logits>
__device__ __forceinline__ void route_all(const Routing& routing, const Logits& logits,
                                          RouteSmem<kThreads>& smem) {
  const int tokens = static_cast<int>(routing.tokens);
  choose<kThreads>(routing, 0, tokens, logits, nullptr);
  __syncthreads();
  rank<true>(routing, 0, tokens * routing.top_k, smem);
}

}  // namespace l4k
