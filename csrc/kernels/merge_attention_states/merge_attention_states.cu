#include "kernels/merge_attention_states/merge_attention_states.cuh"

#include "host/launch.h"

namespace l4k {

cudaError_t merge_attention_states(const MergeAttentionStatesParams& params, cudaStream_t stream) {
  const int64_t grid = ceil_div<int64_t>(params.rows, kMergeRows);
  if (grid >= int64_t{1} << 31) return cudaErrorInvalidValue;
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(grid)), .block = dim3(kMergeThreads)};
  return launch(merge_attention_states_kernel, config, stream, params);
}

}  // namespace l4k
