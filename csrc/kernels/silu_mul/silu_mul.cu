#include "kernels/silu_mul/silu_mul.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "tile/base.h"

namespace l4k {

cudaError_t silu_mul(const SiluMulParams& params, cudaStream_t stream) {
  const int64_t num_tiles = params.rows * ceil_div<int64_t>(params.width / 8, kSiluMulTile);
  // More CTAs than can be resident would only queue.
  const int64_t resident = int64_t{sm_count()} * (2048 / kSiluMulThreads);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(num_tiles, resident))),
                      .block = dim3(kSiluMulThreads)};
  return launch(silu_mul_kernel, config, stream, params);
}

cudaError_t silu_mul_fp8(const SiluMulFp8Params& params, cudaStream_t stream) {
  const int threads = round_up(ceil_div(params.width / kVector, kSiluMulFp8Vectors), 32);
  const int64_t resident = int64_t{sm_count()} * (65536 / kSiluMulFp8Registers / threads);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(params.rows, resident))),
                      .block = dim3(threads)};
  return params.scaling == kScalingRow
             ? launch(silu_mul_fp8_kernel<kScalingRow>, config, stream, params)
             : launch(silu_mul_fp8_kernel<kScaling1x128>, config, stream, params);
}

}  // namespace l4k
