// Which rows belong to which expert, from offsets on the device.
#pragma once
#include "tile/error.h"
#include "tile/reduce.cuh"
#include "tile/report.cuh"
#include "tile/schedule.h"

namespace l4k {

struct ExpertRows {
  int begin, end;
};

// Rows of expert `e`, of 32 that a warp looks at together: e = lane plus a multiple of 32. `rows` is
// where the experts of earlier rounds end, and then those of this. Without offsets expert 0 has all
// rows. Offsets that do not ascend within [0, m] are clamped, so that nothing outside is touched, and
// reported.
__device__ __forceinline__ ExpertRows expert_rows(const int* offsets, int num_experts, int m, int e,
                                                  int& rows, uint32_t* error, DeviceError code) {
  int end = m;
  if (offsets != nullptr && e < num_experts) end = offsets[e + 1];
  // A running maximum makes invalid offsets ascend; valid ones it leaves as they are.
  const int given = end;
  end = min(max(end, rows), m);
  end = warp_running_max(end);
  const bool starts = e > 0 || offsets == nullptr || offsets[0] == 0;
  if (e < num_experts && (end != given || !starts)) report_error(error, code);
  int begin = __shfl_up_sync(0xffffffff, end, 1);
  if (threadIdx.x % 32 == 0) begin = rows;
  rows = __shfl_sync(0xffffffff, end, 31);
  return {begin, end};
}

// Running totals of rows and tiles per expert of a product, by one warp.
template <typename Params>
__device__ __forceinline__ void scan_experts(const Params& p, DeviceError code,
                                             const RaggedSchedule& schedule, int* row_ends,
                                             int* tile_ends) {
  int rows = 0, tiles = 0;  // totals before this round
  for (int base = 0; base < p.num_experts; base += 32) {
    const int e = base + threadIdx.x % 32;
    const ExpertRows own =
        expert_rows(p.expert_offsets, p.num_experts, p.m, e, rows, p.error, code);
    const int count = e < p.num_experts ? schedule.tiles(own.end - own.begin) : 0;
    const int total = tiles + warp_running_sum(count);
    if (e < p.num_experts) {
      row_ends[e] = own.end;
      tile_ends[e] = total;
    }
    tiles = __shfl_sync(0xffffffff, total, 31);
  }
}

}  // namespace l4k
