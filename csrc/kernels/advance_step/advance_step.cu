#include "kernels/advance_step/advance_step.cuh"

#include "host/launch.h"

namespace l4k {

cudaError_t advance_step(const AdvanceStepParams& params, cudaStream_t stream) {
  const int64_t grid = ceil_div<int64_t>(params.rows, kAdvanceStepRows);
  if (grid >= int64_t{1} << 31) return cudaErrorInvalidValue;
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(grid)),
                      .block = dim3(kAdvanceStepThreads)};
  return launch(advance_step_kernel, config, stream, params);
}

}  // namespace l4k
