// Rows and tiles of each expert of a ragged product, from offsets that only the device knows.
#pragma once
#include "tile/error.h"
#include "tile/reduce.cuh"
#include "tile/report.cuh"
#include "tile/schedule.h"

namespace l4k {

struct ExpertOffsets {
  const int* offsets;  // [E + 1], null when dense: one expert with all rows
  int rows;            // of the product
  uint32_t* error;     // sticky error word
  DeviceError code;    // what offsets that do not ascend within [0, rows] are reported as
};

// Running totals of rows and tiles per expert, by one warp. Invalid offsets are clamped, so that
// nothing outside is touched, and reported.
__device__ __forceinline__ void scan_experts(const ExpertOffsets& p, const RaggedSchedule& schedule,
                                             int* row_ends, int* tile_ends) {
  const int lane = threadIdx.x % 32, experts = schedule.num_experts;
  int rows = 0, tiles = 0;  // totals before this round
  for (int base = 0; base < experts; base += 32) {
    const int e = base + lane;
    int end = p.rows;
    if (p.offsets != nullptr && e < experts) end = p.offsets[e + 1];
    // A running maximum makes invalid offsets ascend; valid ones it leaves as they are.
    const int given = end;
    end = min(max(end, rows), p.rows);
    end = warp_running_max(end);
    const bool starts = e > 0 || p.offsets == nullptr || p.offsets[0] == 0;
    if (e < experts && (end != given || !starts)) report_error(p.error, p.code);
    int start = __shfl_up_sync(0xffffffff, end, 1);
    if (lane == 0) start = rows;
    const int own = e < experts ? schedule.tiles(end - start) : 0;
    const int total = tiles + warp_running_sum(own);
    if (e < experts) {
      row_ends[e] = end;
      tile_ends[e] = total;
    }
    rows = __shfl_sync(0xffffffff, end, 31);
    tiles = __shfl_sync(0xffffffff, total, 31);
  }
}

}  // namespace l4k
