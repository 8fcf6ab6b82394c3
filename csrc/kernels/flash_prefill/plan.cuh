// One CTA decides into what the tiles of all sequences are cut and sorts the pieces by cost, longest
// first. The order inside a class of cost depends on timing, and so does where partial results go; no
// result does: every piece is computed alone, and an item's are merged in their order.
#pragma once
#include "kernels/flash_prefill/flash_prefill.h"
#include "kernels/flash_prefill/lists.cuh"
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

// A tile of queries of a batch that may be cut.
struct PlanTile {
  int sequence, tile, key_tiles;
};

struct PlanSmem {
  int counts[kPrefillClasses];  // pieces of a class, then where its next piece goes
  int ends[kPlanThreads];       // tiles of the sequences up to this one, of those looked at
  int warp_totals[32];
  PlanTile tiles[kPrefillMaxCut * kPrefillMaxCtas];
  PrefillTotals totals;
  unsigned long long best;  // cost, then how many key tiles a piece has at most
  int slots, cut;           // taken so far
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

// Calls visit(sequence, tile, its key tiles) for every tile. The tiles of all sequences together are dealt to the
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
      visit(b, tile, at.end_tile - at.first_tile);
    }
    __syncthreads();
  }
}

// Collects the tiles of a batch that may be cut.
__device__ __forceinline__ void collect_tiles(const FlashPrefillParams& p, PlanSmem& smem) {
  if (threadIdx.x == 0) {
    smem.totals = {0, 0, 0};
    smem.best = ~0ull;
  }
  __syncthreads();
  for_each_tile(p, smem, [&](int sequence, int tile, int key_tiles) {
    smem.tiles[atomicAdd(&smem.totals.items, 1)] = {sequence, tile, key_tiles};
    atomicMax(&smem.totals.largest, key_tiles);
    atomicAdd(&smem.totals.tiles, static_cast<unsigned long long>(key_tiles));
  });
}

// The key tiles that a piece has at most. A warp for each candidate.
__device__ __forceinline__ int choose_cut(const FlashPrefillParams& p, PlanSmem& smem) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const PrefillTotals& totals = smem.totals;
  if (warp < kCutCandidates) {
    const int tiles = cut_candidate(totals, p.kv_heads, p.ctas, warp);
    int pieces = 0;
    for (int i = lane; i < totals.items; i += 32)
      pieces += count_pieces(smem.tiles[i].key_tiles, tiles);
    pieces = warp_sum(pieces);
    const int64_t cost = cut_cost(totals, p.kv_heads, p.ctas, tiles, pieces);
    // Of equal cost, that of the longest pieces.
    if (lane == 0) atomicMin(&smem.best, (cost << 28) + ((1 << 28) - 1 - tiles));
  }
  __syncthreads();
  return (1 << 28) - 1 - static_cast<int>(smem.best & ((1 << 28) - 1));
}

// Calls visit(item, its pieces, class) for every piece. Where a batch is cut, a warp deals with the
// pieces of a tile; enter(lane 0's, pieces) says where their partial results go.
template <typename Enter, typename Visit>
__device__ __forceinline__ void for_each_piece(const FlashPrefillParams& p, PlanSmem& smem,
                                               int max_tiles, Enter enter, Visit visit) {
  if (!p.cuts()) {
    for_each_tile(p, smem, [&](int sequence, int tile, int key_tiles) {
      visit(PrefillItem{sequence, tile, 0, 0, 1}, cost_class(key_tiles));
    });
    return;
  }
  for (int i = threadIdx.x / 32; i < smem.totals.items; i += kPlanThreads / 32) {
    const PlanTile at = smem.tiles[i];
    const int count = count_pieces(at.key_tiles, max_tiles);
    const PrefillPieces pieces = pieces_of(at.key_tiles, count);
    PrefillItem item{at.sequence, at.tile, 0, 0, static_cast<uint16_t>(count)};
    if (count > 1) item.slot = enter(item);
    for (int k = threadIdx.x % 32; k < count; k += 32) {
      item.piece = static_cast<uint16_t>(k);
      visit(item, cost_class(pieces.begin(k + 1) - pieces.begin(k)));
    }
  }
}

__global__ void __launch_bounds__(kPlanThreads, 1)
    flash_prefill_plan_kernel(const __grid_constant__ FlashPrefillParams p) {
  __shared__ PlanSmem smem;
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  auto* plan = reinterpret_cast<PrefillPlan*>(p.plan);
  auto* items = reinterpret_cast<PrefillItem*>(plan + 1);
  PrefillPlan made{.shape = p.shape(), .merge_warps = 1};
  int* lengths = planned_lengths(p);
  for (int i = threadIdx.x; i <= p.batch; i += kPlanThreads) {
    lengths[i] = p.cu_seqlens_q[i];
    if (i < p.batch) lengths[p.batch + 1 + i] = p.seqlens_k[i];
  }
  if (__syncthreads_or(offsets_are_wrong(p))) {
    // Nobody owns a row: the main kernel makes all of them zero.
    if (threadIdx.x == 0) {
      report_error(p.error, DeviceError::kFlashPrefillOffsets);
      *plan = made;
    }
    return;
  }
  int max_tiles = 0;
  if (threadIdx.x == 0) smem.slots = smem.cut = 0;
  if (p.cuts()) {
    collect_tiles(p, smem);
    max_tiles = choose_cut(p, smem);
    made.merge_warps = merge_warps(count_pieces(smem.totals.largest, max_tiles));
  }
  smem.counts[threadIdx.x] = 0;
  __syncthreads();
  for_each_piece(
      p, smem, max_tiles, [](const PrefillItem&) { return 0; },
      [&](const PrefillItem&, int cost) { atomicAdd(&smem.counts[cost], 1); });
  __syncthreads();
  // Over the classes from the costliest down, one class per thread.
  const int cost = kPrefillClasses - 1 - threadIdx.x, count = smem.counts[cost];
  const int total = running_total(count, smem.warp_totals);
  smem.counts[cost] = total - count;
  made.pieces = total;  // of the last thread, which is the one that stores it
  __syncthreads();
  auto* cut = items + max_prefill_pieces(p.max_items);
  const auto enter = [&](const PrefillItem& item) {
    int slot = 0;
    if (threadIdx.x % 32 == 0) {
      slot = atomicAdd(&smem.slots, item.pieces);
      PrefillItem first = item;
      first.slot = slot;
      cut[atomicAdd(&smem.cut, 1)] = first;
    }
    return __shfl_sync(0xffffffff, slot, 0);
  };
  for_each_piece(p, smem, max_tiles, enter, [&](const PrefillItem& item, int cost) {
    items[atomicAdd(&smem.counts[cost], 1)] = item;
  });
  __syncthreads();
  if (cost != 0) return;
  made.rows = p.cu_seqlens_q[p.batch];
  made.cut = smem.cut;
  *plan = made;
}

}  // namespace l4k
