#include "kernels/rms_norm/rms_norm.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"

namespace l4k {

namespace {

using Kernel = void (*)(RmsNormParams);

template <bool kResidual>
Kernel kernel_for(Scaling scaling) {
  switch (scaling) {
    case kScalingNone:
      return rms_norm_kernel<kResidual, kScalingNone>;
    case kScalingRow:
      return rms_norm_kernel<kResidual, kScalingRow>;
    case kScaling1x128:
      return rms_norm_kernel<kResidual, kScaling1x128>;
    default:
      return nullptr;
  }
}

}  // namespace

cudaError_t rms_norm(const RmsNormParams& params, cudaStream_t stream) {
  const int threads = norm_threads(params.width / kVector);
  const int64_t resident = int64_t{sm_count()} * (65536 / kRmsNormRegisters / threads);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(params.rows, resident))),
                      .block = dim3(threads),
                      .smem_bytes = params.width * sizeof(uint16_t)};
  Kernel kernel =
      params.residual ? kernel_for<true>(params.scaling) : kernel_for<false>(params.scaling);
  return kernel ? launch(kernel, config, stream, params) : cudaErrorInvalidValue;
}

}  // namespace l4k
