// The shared memory of one CTA, its warps, and its barriers.
#pragma once
#include "kernels/stream_gemm/schedule.h"
#include "tile/pipeline.cuh"

namespace l4k {

// Warps of a CTA by what they do.
constexpr int kStreamConsumers = 8;
enum StreamWarp : int {
  kWarpWeights = kStreamConsumers,
  kWarpRows,
  kWarpFinish,
};

// kTiles: columns of products, 8 tokens each. The rows of A of one item follow the struct.
template <typename Weights, int kTiles>
struct StreamSmem {
  static constexpr int kStages = Weights::kStages;
  // Sums of sliced rows meet in the workspace, which takes each warp a microsecond or two.
  static constexpr int kFinishers = kTiles == 1 ? 2 : Weights::kFinishers;
  static constexpr int kThreads = 32 * (kWarpFinish + kFinishers);
  // Every warp takes as many neighbouring units of a stage.
  static constexpr int kStageUnits = kStreamConsumers * Weights::kWarpUnits;
  static constexpr int kAlignment = Weights::kTiled ? 128 : 1024;  // TMA swizzles by 1,024 bytes
  alignas(kAlignment) char ring[kStages][kStageUnits * Weights::kMaxUnitBytes];
  // Sums of a run, by warp and lane: others are added up while these are written.
  float4 sums[kFinishers][kStreamConsumers][kTiles][32];
  StreamItem items[kStreamMaxItems];
  int num_items, row_tiles;
  Shares shares;
  int last_row;  // where the last expert's rows end
  Pipeline<kStages> stages;
  // full: the copies' bytes; empty: a consumer warp each.
  uint64_t rows_full, rows_empty;
  // full: a consumer warp each; empty: the warp that adds them up.
  uint64_t sums_full[kFinishers], sums_empty[kFinishers];

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
    for (int i = 0; i < kFinishers; ++i) {
      ptx::mbarrier_init(&sums_full[i], kStreamConsumers);
      ptx::mbarrier_init(&sums_empty[i], 1);
    }
    ptx::fence_mbarrier_init();
  }
};

}  // namespace l4k
