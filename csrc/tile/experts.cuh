// Which rows belong to which expert, from offsets on the device.
#pragma once
#include "tile/error.h"
#include "tile/reduce.cuh"
#include "tile/report.cuh"

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

}  // namespace l4k
