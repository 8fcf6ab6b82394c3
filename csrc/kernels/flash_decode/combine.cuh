// How the partial results of a work item that is split become its result.
#pragma once
#include "kernels/flash_decode/item.cuh"
#include "ptx/arithmetic.cuh"
#include "ptx/memory.cuh"
#include "tile/vector.cuh"

namespace l4k {

// Partial results of an item: `count` (at most 32) of them, from split `first` on, `step` apart.
struct CombineGroup {
  int first, step, count;
};

// Combines a group row by row: lane i of a warp weighs the i-th, then all lanes add up four columns
// each, in order. The sum takes the place of the first, or is the result. Values are on their way
// before the weights are known.
__device__ __forceinline__ void combine_group(const DecodeItem& item, const CombineGroup& group,
                                              bool is_result) {
  constexpr int kBatch = 16;
  const DecodeWorkspace& work = item.workspace;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = group.count;
  const int end = min(item.end_row() - item.block_row, kDecodeRows);
  const int64_t slot = lane < count ? item.slot(group.first + lane * group.step) : 0;
  for (int r = warp; r < end; r += kDecodeConsumers) {
    const int64_t own = slot * work.rows + r;
    const float2 state = lane < count ? __ldcg(work.states + own) : float2{kMinusInfinity, 0.f};
    float4 total{0.f, 0.f, 0.f, 0.f};
    float weight = 0.f, maximum = 0.f, sum = 0.f;
    bool bad = false;
#pragma unroll 1
    for (int first = 0; first < count; first += kBatch) {
      float4 v[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const float* from = work.values + __shfl_sync(0xffffffff, own, first + i) * kDecodeHeadDim;
        v[i] = first + i < count ? __ldcg(reinterpret_cast<const float4*>(from) + lane) : float4{};
      }
      if (first == 0) {
        maximum = warp_max(state.x);
        weight = ptx::exp2_approx(state.x - (maximum == kMinusInfinity ? 0.f : maximum));
        sum = warp_sum(state.y * weight);
        bad = __any_sync(0xffffffff, state.y < 0.f);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const float w = __shfl_sync(0xffffffff, weight, first + i);
        if (first + i >= count) continue;
        total.x += w * v[i].x, total.y += w * v[i].y;
        total.z += w * v[i].z, total.w += w * v[i].w;
      }
    }
    if (!is_result) {  // `own` of lane 0 is the first's
      float* to = work.values + __shfl_sync(0xffffffff, own, 0) * kDecodeHeadDim;
      reinterpret_cast<float4*>(to)[lane] = total;
      if (lane == 0) work.states[own] = {maximum, bad ? -1.f : sum};
      continue;
    }
    const DecodeRow row = item.row(r);
    const bool none = bad || !row.sees;
    const float factor = item.v_scale() / sum;
    const __nv_bfloat162 halves[2] = {
        __floats2bfloat162_rn(none ? 0.f : total.x * factor, none ? 0.f : total.y * factor),
        __floats2bfloat162_rn(none ? 0.f : total.z * factor, none ? 0.f : total.w * factor)};
    *reinterpret_cast<uint2*>(row.out + 4 * lane) = *reinterpret_cast<const uint2*>(halves);
    if (lane == 0) *row.lse = none ? kMinusInfinity : natural_lse(maximum, sum);
  }
}

// After a partial result has been stored, by all consumer warps: the CTA that is the last of its
// combine group combines it, and the last of those combines the groups.
template <bool kFp8>
__device__ __forceinline__ void combine(const DecodeItem& item, DecodeSmem<kFp8>& smem) {
  const int splits = item.splits(), size = combine_group_size(splits);
  // Counters live at slots of splits that have none of their own: a group's first, and for the
  // groups the item's second split. The last arrival leaves 0 again.
  const auto is_last = [&](int counter, int count) {
    auto* at = reinterpret_cast<uint32_t*>(item.p.plan + kDecodeCounters) + item.slot(counter);
    decode_consumers_sync();  // all partial results before the count
    if (threadIdx.x == 0)
      smem.is_last = ptx::increment_wrapping(at, count - 1) == static_cast<uint32_t>(count - 1);
    decode_consumers_sync();
    return smem.is_last;
  };
  const int first = item.work.k / size * size, count = min(splits - first, size);
  if (!is_last(first, count)) return;
  combine_group(item, {first, 1, count}, splits <= size);
  const int groups = ceil_div(splits, size);
  if (groups > 1 && is_last(1, groups)) combine_group(item, {0, size, groups}, true);
}

}  // namespace l4k
