#include "kernels/quantize_fp8/quantize_fp8.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"

namespace l4k {

namespace {

// CTAs per matrix: the same for both launches, because the second reads what the first left.
int tensor_ctas(int64_t matrices, int64_t elements) {
  const int64_t needed = ceil_div<int64_t>(
      elements, int64_t{kQuantizeTensorThreads} * kQuantizeTensorUnroll * kVector);
  const int64_t share = ceil_div<int64_t>(int64_t{sm_count()} * 5, std::max<int64_t>(matrices, 1));
  return static_cast<int>(std::clamp<int64_t>(needed, 1, share));
}

}  // namespace

cudaError_t quantize_rows(const QuantizeRowsParams& params, cudaStream_t stream) {
  const int threads = round_up(ceil_div(params.width / kVector, kQuantizeVectors), 32);
  const int64_t resident = int64_t{sm_count()} * (65536 / kQuantizeRowRegisters / threads);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(params.rows, resident))),
                      .block = dim3(threads)};
  return params.scaling == kScalingRow
             ? launch(quantize_rows_kernel<kScalingRow>, config, stream, params)
             : launch(quantize_rows_kernel<kScaling1x128>, config, stream, params);
}

cudaError_t quantize_blocks(const QuantizeBlocksParams& params, cudaStream_t stream) {
  const int64_t blocks =
      params.matrices * ceil_div<int64_t>(params.rows, kScaleBlock) * (params.width / kScaleBlock);
  // 56 registers: four CTAs fit an SM.
  const int64_t grid = std::min(blocks, int64_t{sm_count()} * 4);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(grid)),
                      .block = dim3(kQuantizeBlockThreads)};
  return launch(quantize_blocks_kernel, config, stream, params);
}

int64_t quantize_tensor_workspace(int64_t matrices, int64_t elements) {
  return matrices * tensor_ctas(matrices, elements);
}

cudaError_t quantize_tensor(const QuantizeTensorParams& params, cudaStream_t stream) {
  if (params.matrices == 0) return cudaSuccess;
  LaunchConfig config{.grid = dim3(tensor_ctas(params.matrices, params.elements),
                                   static_cast<unsigned>(params.matrices)),
                      .block = dim3(kQuantizeTensorThreads)};
  cudaError_t error = launch(quantize_tensor_amax_kernel, config, stream, params);
  if (error != cudaSuccess) return error;
  return launch(quantize_tensor_kernel, config, stream, params);
}

}  // namespace l4k
