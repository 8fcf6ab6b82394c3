#include "kernels/moe_combine/moe_combine.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "tile/row_tiles.h"

namespace l4k {

cudaError_t moe_combine(const MoeCombineParams& params, cudaStream_t stream) {
  if (params.tokens * params.top_k >= int64_t{1} << 31) return cudaErrorInvalidValue;
  const RowTiles tiles =
      tile_rows(params.width / kVector, kMoeCombineUnroll, kMoeCombineMaxThreads);
  // 64 registers: 1,024 threads fit an SM.
  const int64_t resident = int64_t{sm_count()} * (1024 / tiles.threads);
  const int64_t grid = std::min(params.tokens * tiles.row_tiles, resident);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(grid)), .block = dim3(tiles.threads)};
  return launch(moe_combine_kernel, config, stream, params, tiles.row_tiles);
}

cudaError_t moe_combine_norm(const MoeCombineNormParams& params, cudaStream_t stream) {
  const MoeCombineParams& c = params.combine;
  if (c.tokens * c.top_k >= int64_t{1} << 31) return cudaErrorInvalidValue;
  const int threads = norm_threads(static_cast<int>(c.width / kVector));
  const int64_t resident = int64_t{sm_count()} * (65536 / kMoeCombineNormRegisters / threads);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(c.tokens, resident))),
                      .block = dim3(threads)};
  return params.q == nullptr ? launch(moe_combine_norm_kernel<false>, config, stream, params)
                             : launch(moe_combine_norm_kernel<true>, config, stream, params);
}

}  // namespace l4k
