// The two warps that copy: one lane of each.
#pragma once
#include "kernels/stream_gemm/smem.cuh"
#include "kernels/stream_gemm/stream_gemm.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"

namespace l4k {

// Where a unit lies, in bytes from the first of the weights.
template <typename Weights>
__device__ __forceinline__ int64_t unit_offset(const StreamSchedule& schedule, int k_blocks,
                                               int item, int unit, int unit_bytes) {
  const StreamItem& i = schedule.items[item];
  const int local = unit - schedule.first_unit(item), tile = local / i.blocks;
  const int block = i.first_block + local - tile * i.blocks;
  const int64_t row_tile = int64_t{i.expert} * schedule.row_tiles + tile;
  return (row_tile * k_blocks + block) * unit_bytes;
}

// Weights of the share, stage by stage. Units of an item are contiguous; those of a slice only up to
// the end of the slice.
template <typename Weights, int kTiles>
__device__ __forceinline__ void load_weights(StreamSmem<Weights, kTiles>& smem,
                                             const StreamGemmParams& p, int begin, int end) {
  const StreamSchedule schedule = smem.schedule();
  const int bytes = Weights::unit_bytes(p), k_blocks = p.k / Weights::kUnitK;
  const auto* weights = static_cast<const char*>(p.weights);
  const uint64_t policy = ptx::evict_first_policy();
  Stage<Weights::kStages> stage;
  int item = 0;
  for (int base = begin; base < end; base += kStreamStageUnits, stage.advance()) {
    const int stage_end = min(base + kStreamStageUnits, end);
    smem.stages.wait_empty(stage);
    uint64_t* full = &smem.stages.full[stage.index];
    ptx::mbarrier_arrive_expect_tx(full, (stage_end - base) * bytes);
    for (int unit = base; unit < stage_end;) {
      while (smem.items[item].end_unit <= unit) ++item;
      const StreamItem& i = smem.items[item];
      int run_end = i.end_unit;
      if (i.slices > 1) run_end = unit + i.blocks - (unit - schedule.first_unit(item)) % i.blocks;
      const int count = min(run_end, stage_end) - unit;
      ptx::bulk_load(smem.ring[stage.index] + (unit - base) * bytes,
                     weights + unit_offset<Weights>(schedule, k_blocks, item, unit, bytes),
                     count * bytes, full, policy);
      unit += count;
    }
  }
}

// Rows of A of each item of the share, when the consumers have left the last one's.
template <typename Weights, int kTiles>
__device__ __forceinline__ void load_rows(StreamSmem<Weights, kTiles>& smem,
                                          const StreamGemmParams& p, int first_item, int end) {
  uint32_t phase = 0;
  for (int item = first_item;; ++item, phase ^= 1) {
    const StreamItem i = smem.items[item];
    const int bytes = i.blocks * Weights::kRowBytes;
    const int pitch = StreamRows::pitch(i.blocks, Weights::kRowBytes);
    ptx::mbarrier_wait(&smem.rows_empty, phase ^ 1);
    ptx::mbarrier_arrive_expect_tx(&smem.rows_full, i.rows * bytes);
    const auto* source =
        static_cast<const char*>(p.a) + int64_t{i.first_block} * Weights::kRowBytes;
    for (int row = 0; row < i.rows; ++row)
      ptx::bulk_load(smem.rows() + row * pitch,
                     source + (i.row + row) * p.a_stride * Weights::kElementBytes, bytes,
                     &smem.rows_full);
    if (i.end_unit >= end) break;
  }
}

}  // namespace l4k
