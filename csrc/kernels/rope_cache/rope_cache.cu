#include "kernels/rope_cache/rope_cache.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"

namespace l4k {

cudaError_t rope_cache(const RopeCacheParams& params, cudaStream_t stream) {
  constexpr int kWarps = kRopeThreads / 32;
  const int64_t units =
      params.tokens * ceil_div(params.num_heads + 2 * params.kv_heads, kRopeHeads);
  const int64_t resident = int64_t{sm_count()} * kRopeCtas;
  if (units + resident * kWarps >= int64_t{1} << 32) return cudaErrorInvalidValue;
  LaunchConfig config{
      .grid = dim3(static_cast<unsigned>(std::min(ceil_div<int64_t>(units, kWarps), resident))),
      .block = dim3(kRopeThreads)};
  if (params.rule.cos_sin != nullptr)
    return params.fp8_cache ? launch(rope_cache_kernel<true, true>, config, stream, params)
                            : launch(rope_cache_kernel<true, false>, config, stream, params);
  return params.fp8_cache ? launch(rope_cache_kernel<false, true>, config, stream, params)
                          : launch(rope_cache_kernel<false, false>, config, stream, params);
}

}  // namespace l4k
