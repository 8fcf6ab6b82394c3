// The partial results of items that were cut become results: one to eight warps share a row, in an
// order that only the item's pieces decide. A launch of its own, since the last CTA of an item would
// read up to 8 MB alone while the others idle.
#pragma once
#include <cuda_bf16.h>

#include "kernels/flash_prefill/lists.cuh"
#include "kernels/flash_prefill/softmax.cuh"
#include "ptx/arithmetic.cuh"
#include "ptx/sync.cuh"
#include "tile/reduce.cuh"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kMergeWarps = 8, kMergeThreads = 32 * kMergeWarps;
constexpr int kMergeCtasPerSm = 4;

// A row of an item, and the warps that share it.
struct MergeRow {
  const PrefillPartials& partials;
  int first, step;  // row of piece 0 among all partial results, and from piece to piece
  int pieces;
  int own, warps;  // this warp takes pieces own, own + warps, ...

  // The row's maximum and sum of weights, and whether some piece found a page missing.
  __device__ __forceinline__ float2 state(bool& bad) const {
    float maximum = kMinusInfinity, sum = 0.f;
    for (int k = threadIdx.x % 32; k < pieces; k += 32) {
      const float2 s = __ldcg(partials.states + first + k * step);
      maximum = fmaxf(maximum, s.x);
      bad |= s.y < 0.f;
    }
    bad = __any_sync(0xffffffff, bad);
    maximum = warp_max(maximum);
    for (int k = threadIdx.x % 32; k < pieces; k += 32) {
      const float2 s = __ldcg(partials.states + first + k * step);
      sum += s.y * weight(s.x, maximum);
    }
    return {maximum, warp_sum(sum)};
  }

  __device__ __forceinline__ static float weight(float own, float maximum) {
    return ptx::exp2_approx(own - (maximum == kMinusInfinity ? 0.f : maximum));
  }

  // Four columns a lane.
  __device__ __forceinline__ float4 values(float maximum) const {
    float4 total{0.f, 0.f, 0.f, 0.f};
#pragma unroll 8
    for (int k = own; k < pieces; k += warps) {
      const int row = first + k * step;
      const float w = weight(__ldcg(partials.states + row).x, maximum);
      const float4 v =
          __ldcg(reinterpret_cast<const float4*>(partials.values + row * 128) + threadIdx.x % 32);
      total.x += w * v.x, total.y += w * v.y, total.z += w * v.z, total.w += w * v.w;
    }
    return total;
  }
};

// One row of a result, by a warp.
__device__ __forceinline__ void store_merged(const FlashPrefillParams& p, int64_t row, int kv_head,
                                             int head, int64_t position, float4 total, float2 state,
                                             bool bad) {
  const bool nothing = bad || position < 0 || position >= p.capacity();
  const float v_scale = p.v_scale != nullptr ? p.v_scale[kv_head] : 1.f;
  const float factor = fabsf(state.x) < kLargestBase ? v_scale / state.y : kNan;
  // A select, not a product: a row of nothing may hold NaN.
  const uint2 packed{nothing ? 0 : pack_pair(total.x * factor, total.y * factor),
                     nothing ? 0 : pack_pair(total.z * factor, total.w * factor)};
  static_cast<uint2*>(p.out)[(row * p.num_heads + head) * 32 + threadIdx.x % 32] = packed;
  constexpr float kLn2 = 0.6931471805599453f;
  if (threadIdx.x % 32 == 0)
    p.lse[int64_t{head} * p.rows + row] =
        nothing || state.y == 0.f ? kMinusInfinity : (state.x + log2f(state.y)) * kLn2;
}

// Adds up what the warps of each row have; the first of them gets it.
__device__ __forceinline__ void add_warps(float4& total, int own, int warps,
                                          float4 (&sums)[kMergeWarps][32]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  sums[warp][lane] = total;
  __syncthreads();
  for (int other = 1; other < warps && own == 0; ++other) {
    const float4 v = sums[warp + other][lane];
    total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
  }
  __syncthreads();  // before the next row's
}

__global__ void __launch_bounds__(kMergeThreads, kMergeCtasPerSm)
    flash_prefill_merge_kernel(const __grid_constant__ FlashPrefillParams p) {
  __shared__ float4 sums[kMergeWarps][32];
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  if (plan_is_stale(p)) return;
  const PrefillLists lists(p);
  const PrefillPartials partials(p);
  const int given = lists.merge_warps, warp = threadIdx.x / 32;
  const int warps = given == 2 || given == 4 || given == 8 ? given : 1;
  const int rows = kMergeWarps / warps, blocks = kPrefillRows / rows;
  const int count = lists.cut * p.kv_heads * blocks, group = p.group.value;
  const int own = warp % warps;
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    const int r = i % blocks * rows + warp / warps, kv_head = i / blocks % p.kv_heads;
    const PrefillItem item = lists.cut_items[i / blocks / p.kv_heads];
    const QueryRows queries = lists.rows_of(item);
    if (queries.count == 0 || item.pieces == 1) continue;  // all warps, or none
    const int tokens = prefill_tokens(group), in_tile = p.group.quotient(r);
    const int token = item.tile * tokens + in_tile;
    const bool exists = in_tile < tokens && token < queries.count;
    const MergeRow row{.partials = partials,
                       .first = (item.slot * p.kv_heads + kv_head) * kPrefillRows + r,
                       .step = p.kv_heads * kPrefillRows,
                       .pieces = item.pieces,
                       .own = own,
                       .warps = warps};
    bool bad = false;
    float2 state{0.f, 0.f};
    float4 total{0.f, 0.f, 0.f, 0.f};
    if (exists) {
      state = row.state(bad);
      total = row.values(state.x);
    }
    if (warps > 1) add_warps(total, own, warps, sums);
    if (exists && own == 0)
      store_merged(p, queries.first + token, kv_head, kv_head * group + r - in_tile * group,
                   int64_t{p.seqlens_k[item.sequence]} - queries.count + token, total, state, bad);
  }
}

}  // namespace l4k
