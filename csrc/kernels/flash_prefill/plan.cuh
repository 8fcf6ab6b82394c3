// One CTA sorts the tiles of all sequences by cost, longest first, into the workspace. The order
// inside a class of cost depends on timing; no result does, as every tile is computed alone.
#pragma once
#include "kernels/flash_prefill/flash_prefill.h"
#include "kernels/flash_prefill/schedule.h"
#include "ptx/sync.cuh"
#include "tile/report.cuh"

namespace l4k {

constexpr int kPlanThreads = kPrefillClasses;

__device__ __forceinline__ bool offsets_are_wrong(const FlashPrefillParams& p) {
  bool wrong = p.cu_seqlens_q[0] != 0;
  for (int b = threadIdx.x; b < p.batch; b += kPlanThreads) {
    const int first = p.cu_seqlens_q[b], end = p.cu_seqlens_q[b + 1];
    // Ascending from 0 with the last within bounds, all are.
    wrong |= end < first || int64_t{end} - first > p.max_seqlen_q || end > p.rows;
  }
  return wrong;
}

// Calls visit(item, class) for every tile, one warp per sequence.
template <typename Visit>
__device__ __forceinline__ void for_each_tile(const FlashPrefillParams& p, Visit visit) {
  const int group = p.num_heads / p.kv_heads;
  for (int b = threadIdx.x / 32; b < p.batch; b += kPlanThreads / 32) {
    const int len_q = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b], len_k = p.seqlens_k[b];
    const int tiles = ceil_div(len_q, prefill_tokens(group));
    for (int tile = threadIdx.x % 32; tile < tiles; tile += 32) {
      const PrefillTile at = prefill_tile(tile, len_q, len_k, group, p.chunk);
      visit(PrefillItem{b, tile}, cost_class(at.end_tile - at.first_tile));
    }
  }
}

__global__ void __launch_bounds__(kPlanThreads)
    flash_prefill_plan_kernel(const __grid_constant__ FlashPrefillParams p) {
  __shared__ int counts[kPrefillClasses];  // then: where the next tile of a class goes
  __shared__ int warp_totals[32];
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  auto* plan = reinterpret_cast<PrefillPlan*>(p.plan);
  auto* items = reinterpret_cast<PrefillItem*>(plan + 1);
  if (__syncthreads_or(offsets_are_wrong(p))) {
    // Nobody owns a row: the main kernel makes all of them zero.
    if (threadIdx.x == 0) {
      report_error(p.error, DeviceError::kFlashPrefillOffsets);
      *plan = {0, 0};
    }
    return;
  }
  counts[threadIdx.x] = 0;
  __syncthreads();
  for_each_tile(p, [&](PrefillItem, int cost) { atomicAdd(&counts[cost], 1); });
  __syncthreads();
  // Running totals over the classes from the costliest down, one class per thread.
  const int cost = kPrefillClasses - 1 - threadIdx.x, lane = threadIdx.x % 32;
  const int count = counts[cost];
  int total = count;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffff, total, step);
    if (lane >= step) total += before;
  }
  if (lane == 31) warp_totals[threadIdx.x / 32] = total;
  __syncthreads();
  for (int warp = 0; warp < threadIdx.x / 32; ++warp) total += warp_totals[warp];
  counts[cost] = total - count;
  if (cost == 0) *plan = {total, p.cu_seqlens_q[p.batch]};
  __syncthreads();
  for_each_tile(
      p, [&](PrefillItem item, int cost) { items[atomicAdd(&counts[cost], 1)] = item; });
}

}  // namespace l4k
