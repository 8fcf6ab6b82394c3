// The two warps that copy.
#pragma once
#include "kernels/stream_gemm/smem.cuh"
#include "kernels/stream_gemm/stream_gemm.h"
#include "kernels/stream_gemm/weights.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "tile/report.cuh"

namespace l4k {

// Units from `unit` on, at most up to `end`, that are copied together: up to the end of the row tile,
// or of the item where its row tiles lie one after the other. `item` moves on to theirs.
template <typename Weights>
__device__ __forceinline__ StreamSpan span_at(const StreamSchedule& schedule, int& item, int unit,
                                              int end) {
  while (schedule.items[item].end_unit <= unit) ++item;
  const StreamItem& i = schedule.items[item];
  const int local = unit - schedule.first_unit(item), tile = local / i.blocks;
  const int block = local - tile * i.blocks;
  const int last = Weights::kTiled && i.slices == 1 ? i.end_unit : unit + i.blocks - block;
  return {i.expert, tile, i.first_block + block, min(last, end) - unit};
}

// Weights of the share, stage by stage.
template <typename Weights, int kTiles>
__device__ __forceinline__ void load_weights(StreamSmem<Weights, kTiles>& smem,
                                             const StreamGemmParams& p,
                                             const typename Weights::Source& source, int begin,
                                             int end) {
  const StreamSchedule schedule = smem.schedule();
  const int bytes = Weights::unit_bytes(p);
  const uint64_t policy = ptx::evict_first_policy();
  Stage<Weights::kStages> stage;
  int item = 0;
  for (int base = begin; base < end; base += smem.kStageUnits, stage.advance()) {
    const int stage_end = min(base + smem.kStageUnits, end);
    smem.stages.wait_empty(stage);
    uint64_t* full = &smem.stages.full[stage.index];
    ptx::mbarrier_arrive_expect_tx(full, (stage_end - base) * bytes);
    for (int unit = base; unit < stage_end;) {
      const StreamSpan span = span_at<Weights>(schedule, item, unit, stage_end);
      Weights::load(smem.ring[stage.index] + (unit - base) * bytes, p, source, span, full, policy);
      unit += span.units;
    }
  }
}

// The first weights of a dense product go to L2 while the previous kernel still runs: coherent, so
// harmless even where they are its result.
template <typename Weights, int kTiles>
__device__ __forceinline__ void prefetch_weights(StreamSmem<Weights, kTiles>& smem,
                                                 const StreamGemmParams& p,
                                                 const typename Weights::Source& source, int begin,
                                                 int end) {
  end = min(end, begin + Weights::kStages * smem.kStageUnits);
  int item = 0;
  for (int unit = begin; unit < end;) {
    const StreamSpan span = span_at<Weights>(smem.schedule(), item, unit, end);
    Weights::prefetch(p, source, span);
    unit += span.units;
  }
}

// Rings' worth of weights that each CTA asks for ahead. Rows that are gathered come straight from the
// router, and while that runs nothing else wants the memory; behind a product more than one ring would
// only delay the routed experts' weights.
constexpr int kAheadOfProduct = 1, kAheadOfGather = 2;

// With experts it is known ahead only that the last one will be multiplied, which is where models have
// the shared expert: each CTA asks for a part of its weights.
template <typename Weights, int kTiles>
__device__ __forceinline__ void prefetch_last_expert(const StreamSmem<Weights, kTiles>& smem,
                                                     const StreamGemmParams& p,
                                                     const typename Weights::Source& source) {
  const int k_blocks = p.k / Weights::kUnitK;
  const Shares shares{p.n / Weights::kUnitRows * k_blocks, static_cast<int>(gridDim.x)};
  const int begin = shares.first(blockIdx.x), end = shares.first(blockIdx.x + 1);
  const int rings = p.gather.permutation != nullptr ? kAheadOfGather : kAheadOfProduct;
  const int units = min(end - begin, rings * Weights::kStages * smem.kStageUnits);
  if (units > 0)
    Weights::prefetch(p, source, {p.num_experts - 1, begin / k_blocks, begin % k_blocks, units});
}

// Where in A a gathered product's row `lane` lies; -1 if its index is outside, which is reported.
template <typename Weights>
__device__ __forceinline__ int gathered_row(const StreamGemmParams& p) {
  static_assert(kFewRaggedRows <= 32);
  const int lane = threadIdx.x % 32;
  if (p.gather.permutation == nullptr || lane >= p.m) return -1;
  const int index = p.gather.permutation[lane];
  if (index >= 0 && index < p.m) return index / p.gather.top_k;
  report_error(p.error, Weights::kPermutationError);
  return -1;
}

// Rows of A of each item of the share, when the consumers have left the last one's; `own_row` is this
// lane's gathered_row. Where K ends inside a unit zeros follow: the weights' zeros must not meet a NaN.
// A row that lies nowhere is all zeros. By a warp.
template <typename Weights, int kTiles>
__device__ __forceinline__ void load_rows(StreamSmem<Weights, kTiles>& smem,
                                          const StreamGemmParams& p, int own_row, int first_item,
                                          int end) {
  const int lane = threadIdx.x % 32;
  uint32_t phase = 0;
  for (int item = first_item;; ++item, phase ^= 1) {
    const StreamItem i = smem.items[item];
    const int first_k = i.first_block * Weights::kUnitK;
    const int padded = i.blocks * Weights::kRowBytes;
    const int bytes = min(padded, (p.k - first_k) * Weights::kElementBytes);
    const int pitch = StreamRows::pitch(i.blocks, Weights::kRowBytes);
    const int gathered = __shfl_sync(0xffffffff, own_row, i.row + lane);
    const int row = p.gather.permutation == nullptr ? i.row + lane : gathered;
    const bool loads = lane < i.rows && row >= 0;
    const uint32_t loaded = __ballot_sync(0xffffffff, loads);
    ptx::mbarrier_wait(&smem.rows_empty, phase ^ 1);
#pragma unroll 1
    for (int r = 0; r < i.rows; ++r)
#pragma unroll 1
      for (int at = (loaded >> r & 1 ? bytes : 0) + 16 * lane; at < padded; at += 512)
        *reinterpret_cast<uint4*>(smem.rows() + r * pitch + at) = make_uint4(0, 0, 0, 0);
    ptx::fence_proxy_async();  // a later item's copy may lie where these zeros do
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive_expect_tx(&smem.rows_full, __popc(loaded) * bytes);
    __syncwarp();
    if (loads)
      ptx::bulk_load(
          smem.rows() + lane * pitch,
          static_cast<const char*>(p.a) + (row * p.a_stride + first_k) * Weights::kElementBytes,
          bytes, &smem.rows_full);
    if (i.end_unit >= end) break;
  }
}

}  // namespace l4k
