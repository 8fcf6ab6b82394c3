// The shared memory of one CTA, its warps, and its barriers.
#pragma once
#include "kernels/stream_gemm/schedule.h"
#include "tile/pipeline.cuh"

namespace l4k {

// Warps of a CTA by what they do.
constexpr int kStreamConsumers = 8;
constexpr int kStreamFinishers = 2;
enum StreamWarp : int {
  kWarpWeights = kStreamConsumers,
  kWarpRows,
  kWarpFinish,
};
constexpr int kStreamThreads = 32 * (kWarpFinish + kStreamFinishers);

// kTiles: columns of products, 8 tokens each. The rows of A of one item follow the struct.
template <typename Weights, int kTiles>
struct StreamSmem {
  static constexpr int kStages = Weights::kStages;
  // Every warp takes as many neighbouring units of a stage.
  static constexpr int kStageUnits = kStreamConsumers * Weights::kWarpUnits;
  alignas(1024) char ring[kStages][kStageUnits * Weights::kMaxUnitBytes];
  // Sums of a run, by warp and lane: one half is added up while the other is written.
  float4 sums[kStreamFinishers][kStreamConsumers][kTiles][32];
  StreamItem items[kStreamMaxItems];
  int num_items, row_tiles;
  Shares shares;
  int last_row;  // where the last expert's rows end
  Pipeline<kStages> stages;
  // full: the copies' bytes; empty: a consumer warp each.
  uint64_t rows_full, rows_empty;
  // full: a consumer warp each; empty: the warp that adds them up.
  uint64_t sums_full[kStreamFinishers], sums_empty[kStreamFinishers];

  // Made anew where it is used, so that the compiler knows where the items lie.
  __device__ __forceinline__ StreamSchedule schedule() const {
    return {items, num_items, row_tiles, shares};
  }
  __device__ __forceinline__ char* rows() {
    return reinterpret_cast<char*>(this) + round_up(static_cast<int>(sizeof(StreamSmem)), 128);
  }

  __device__ __forceinline__ void init_barriers() {
    stages.init(kStreamConsumers);
    ptx::mbarrier_init(&rows_full, 1);
    ptx::mbarrier_init(&rows_empty, kStreamConsumers);
    for (int i = 0; i < kStreamFinishers; ++i) {
      ptx::mbarrier_init(&sums_full[i], kStreamConsumers);
      ptx::mbarrier_init(&sums_empty[i], 1);
    }
    ptx::fence_mbarrier_init();
  }
};

}  // namespace l4k
