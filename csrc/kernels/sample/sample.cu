#include "kernels/sample/sample.cuh"

#include <algorithm>

#include "host/launch.h"

namespace l4k {

cudaError_t sample(const SampleParams& params, cudaStream_t stream) {
  const int size = round_up(ceil_div(params.vocab, kSampleCluster), 8);
  const int threads = std::min(kSampleMaxThreads, round_up(ceil_div(size, 8), 32));
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(params.rows * kSampleCluster)),
                      .block = dim3(threads),
                      .smem_bytes = size * sizeof(float),
                      .cluster = kSampleCluster};
  return params.float32 ? launch(sample_kernel<float>, config, stream, params, size)
                        : launch(sample_kernel<__nv_bfloat16>, config, stream, params, size);
}

}  // namespace l4k
