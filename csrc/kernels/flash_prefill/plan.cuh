// One CTA sorts the tiles of all sequences by cost, longest first, into the workspace. The order
// inside a class of cost depends on timing; no result does, as every tile is computed alone.
#pragma once
#include "kernels/flash_prefill/flash_prefill.h"
#include "kernels/flash_prefill/schedule.h"
#include "ptx/sync.cuh"
#include "tile/reduce.cuh"
#include "tile/report.cuh"

namespace l4k {

constexpr int kPlanThreads = kPrefillClasses;

// Also reports a negative length: its queries are before the first key and see nothing.
__device__ __forceinline__ bool offsets_are_wrong(const FlashPrefillParams& p) {
  bool wrong = p.cu_seqlens_q[0] != 0;
  for (int b = threadIdx.x; b < p.batch; b += kPlanThreads) {
    const int first = p.cu_seqlens_q[b], end = p.cu_seqlens_q[b + 1];
    // Ascending from 0 with the last within bounds, all are.
    if (p.seqlens_k[b] < 0) report_error(p.error, DeviceError::kFlashPrefillSeqlens);
    wrong |= end < first || int64_t{end} - first > p.max_seqlen_q || end > p.rows;
  }
  return wrong;
}

struct PlanSmem {
  int counts[kPrefillClasses];  // tiles of a class, then where its next tile goes
  int ends[kPlanThreads];       // tiles of the sequences up to this one, of those looked at
  int warp_totals[32];
};

// The sum over this thread and those before it.
__device__ __forceinline__ int running_total(int value, int (&warp_totals)[32]) {
  value = warp_running_sum(value);
  __syncthreads();  // the totals of the last call have been read
  if (threadIdx.x % 32 == 31) warp_totals[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; warp < threadIdx.x / 32; ++warp) value += warp_totals[warp];
  return value;
}

// Calls visit(item, class) for every tile. The tiles of all sequences together are dealt to the
// threads, so neither one long sequence nor many short ones leave most of the CTA idle.
template <typename Visit>
__device__ __forceinline__ void for_each_tile(const FlashPrefillParams& p, PlanSmem& smem,
                                              Visit visit) {
  const int group = p.group.value;
  for (int base = 0; base < p.batch; base += kPlanThreads) {
    const int mine = base + threadIdx.x;
    int tiles = 0;
    if (mine < p.batch)
      tiles = ceil_div(p.cu_seqlens_q[mine + 1] - p.cu_seqlens_q[mine], prefill_tokens(group));
    smem.ends[threadIdx.x] = running_total(tiles, smem.warp_totals);
    __syncthreads();
    for (int i = threadIdx.x; i < smem.ends[kPlanThreads - 1]; i += kPlanThreads) {
      int low = 0, high = kPlanThreads - 1;
      while (low < high) {  // the first sequence whose tiles end after i
        const int middle = (low + high) / 2;
        if (i < smem.ends[middle]) high = middle;
        else low = middle + 1;
      }
      const int b = base + low, tile = i - (low == 0 ? 0 : smem.ends[low - 1]);
      const int len_q = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b];
      const PrefillTile at =
          prefill_tile(tile, len_q, p.seqlens_k[b], group, p.chunk, p.capacity());
      visit(PrefillItem{b, tile}, cost_class(at.end_tile - at.first_tile));
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kPlanThreads)
    flash_prefill_plan_kernel(const __grid_constant__ FlashPrefillParams p) {
  __shared__ PlanSmem smem;
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
  smem.counts[threadIdx.x] = 0;
  __syncthreads();
  for_each_tile(p, smem, [&](PrefillItem, int cost) { atomicAdd(&smem.counts[cost], 1); });
  // Over the classes from the costliest down, one class per thread.
  const int cost = kPrefillClasses - 1 - threadIdx.x, count = smem.counts[cost];
  const int total = running_total(count, smem.warp_totals);
  smem.counts[cost] = total - count;
  if (cost == 0) *plan = {total, p.cu_seqlens_q[p.batch]};
  __syncthreads();
  for_each_tile(
      p, smem, [&](PrefillItem item, int cost) { items[atomicAdd(&smem.counts[cost], 1)] = item; });
}

}  // namespace l4k
