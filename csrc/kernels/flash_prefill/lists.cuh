// A plan as the kernels read it. It may be the caller's: nothing in it is believed that could lead out
// of bounds.
#pragma once
#include "kernels/flash_prefill/flash_prefill.h"
#include "tile/report.cuh"

namespace l4k {

// One piece of a tile of queries, for one KV head.
struct PrefillWork : PrefillTile {
  int sequence, kv_head;
  int row;   // of Q, the first; -1: there is no more work
  int slot;  // of its partial result; -1: this is all of the tile
};

// Of a sequence.
struct QueryRows {
  int first, count;
};

// Where a plan says from what lengths it was made: cu_seqlens_q, then seqlens_k.
__device__ __forceinline__ int* planned_lengths(const FlashPrefillParams& p) {
  return p.plan + prefill_lengths_at(p.max_items);
}

// A warp asks: a caller's plan that was made from other lengths does not cover these rows. That is an
// error, and then no sequence owns one.
__device__ __forceinline__ bool plan_is_stale(const FlashPrefillParams& p) {
  if (!p.planned) return false;
  const int* made = planned_lengths(p);
  bool differs = false;
#pragma unroll 1
  for (int i = threadIdx.x % 32; i <= p.batch; i += 32) {
    differs |= made[i] != p.cu_seqlens_q[i];
    if (i < p.batch) differs |= made[p.batch + 1 + i] != p.seqlens_k[i];
  }
  if (differs) report_error(p.error, DeviceError::kFlashPrefillPlan);
  return __any_sync(0xffffffff, differs);
}

struct PrefillLists {
  const FlashPrefillParams& p;
  const PrefillItem *items, *cut_items;
  int rows, pieces, cut;  // of Q that a sequence owns; lengths of the lists
  int merge_warps;

  // A plan for other shapes is an error, and then no sequence owns a row.
  __device__ __forceinline__ explicit PrefillLists(const FlashPrefillParams& p) : p(p) {
    const auto& plan = *reinterpret_cast<const PrefillPlan*>(p.plan);
    items = reinterpret_cast<const PrefillItem*>(&plan + 1);
    cut_items = items + max_prefill_pieces(p.max_items);
    PrefillShape shape = plan.shape;
    if (shape.ctas == 0) shape.ctas = p.ctas;  // the reference's, which cuts nothing
    const bool belongs = shape == p.shape();
    if (!belongs) report_error(p.error, DeviceError::kFlashPrefillPlan);
    const auto within = [&](int value, int64_t limit) {
      return !belongs || value < 0 ? 0 : value < limit ? value : static_cast<int>(limit);
    };
    const int64_t numbers = 0x7fffffff / p.kv_heads - kPrefillMaxCtas;  // of works, in 32 bits
    rows = within(plan.rows, p.rows);
    pieces = within(plan.pieces, min(max_prefill_pieces(p.max_items), numbers));
    const int64_t cut_limit = max_prefill_slots(p.kv_heads, p.ctas) / 2;
    cut = within(plan.cut, p.cuts() ? min(max_prefill_cut(p.max_items), cut_limit) : 0);
    merge_warps = plan.merge_warps;
  }

  // The sequence's rows of Q; empty for an item that this batch does not have.
  __device__ __forceinline__ QueryRows rows_of(const PrefillItem& item) const {
    const auto is_below = [](int value, int limit) { return value >= 0 && value < limit; };
    int first = 0, end = 0;
    if (is_below(item.sequence, p.batch)) {
      first = p.cu_seqlens_q[item.sequence];
      end = p.cu_seqlens_q[item.sequence + 1];
    }
    const int slots = p.cuts() ? max_prefill_slots(p.kv_heads, p.ctas) : 0;
    const bool fits = first >= 0 && first < end && end <= p.rows &&
                      is_below(item.tile, ceil_div(end - first, prefill_tokens(p.group.value))) &&
                      item.piece < item.pieces &&
                      (item.pieces == 1 || (item.slot >= 0 && item.slot <= slots - item.pieces));
    if (fits) return {first, end - first};
    report_error(p.error, DeviceError::kFlashPrefillPlan);
    return {0, 0};
  }

  // False for an item that this batch does not have.
  __device__ __forceinline__ bool find(const PrefillItem& item, int kv_head,
                                       PrefillWork& work) const {
    const QueryRows rows = rows_of(item);
    if (rows.count == 0) return false;
    static_cast<PrefillTile&>(work) = prefill_tile(
        item.tile, rows.count, p.seqlens_k[item.sequence], p.group.value, p.chunk, p.capacity());
    const PrefillPieces pieces = pieces_of(work.end_tile - work.first_tile, item.pieces);
    work.end_tile = work.first_tile + pieces.begin(item.piece + 1);
    work.first_tile += pieces.begin(item.piece);
    work.sequence = item.sequence;
    work.kv_head = kv_head;
    work.row = rows.first + work.first_token;
    work.slot = item.pieces == 1 ? -1 : (item.slot + item.piece) * p.kv_heads + kv_head;
    return true;
  }
};

// Partial results of 128 rows, by slot: sums of values relative to the row's maximum, then that (in
// base 2, scaled) and the sum of weights; a sum of -1 says that the row sees a page which does not exist.
struct PrefillPartials {
  float* values;   // [slot][row][128]
  float2* states;  // [slot][row]

  __device__ __forceinline__ explicit PrefillPartials(const FlashPrefillParams& p)
      : values(p.partials), states(reinterpret_cast<float2*>(p.partials + rows(p) * 128)) {}

  // At most 2^17, so that no offset needs more than 32 bits.
  L4K_HD static int rows(const FlashPrefillParams& p) {
    return max_prefill_slots(p.kv_heads, p.ctas) * p.kv_heads * kPrefillRows;
  }
  static int64_t words(const FlashPrefillParams& p) { return int64_t{rows(p)} * (128 + 2); }
};

}  // namespace l4k
