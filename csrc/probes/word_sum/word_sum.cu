#include "probes/word_sum/word_sum.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "tile/base.h"

namespace l4k {

cudaError_t word_sum(const WordSumParams& params, cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(params.out, 0, sizeof(uint32_t), stream);
  if (error != cudaSuccess) return error;
  const int64_t wanted = ceil_div<int64_t>(params.num_vectors, kWordSumThreads * kWordSumUnroll);
  const int64_t resident = int64_t{sm_count()} * (2048 / kWordSumThreads);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(wanted, resident))),
                      .block = dim3(kWordSumThreads),
                      .dependent = false};  // its predecessor is a memset, which triggers nothing
  return launch(word_sum_kernel, config, stream, params);
}

}  // namespace l4k
