#include "kernels/flash_decode/flash_decode.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"

namespace l4k {

namespace {

// From shapes alone: one CTA per SM, fewer where even full block tables hold fewer tiles.
int grid_of(const FlashDecodeParams& p) {
  const DecodeShape shape = decode_shape(p, 0);
  const int64_t tiles = std::max<int64_t>(ceil_div<int64_t>(shape.capacity, kDecodeTile), 1);
  const int64_t items = int64_t{shape.batch} * shape.items;
  return static_cast<int>(std::min<int64_t>(items * tiles, std::min(sm_count(), kDecodeMaxGrid)));
}

template <bool kFp8>
cudaError_t launch_decode(const FlashDecodeParams& p, cudaStream_t stream) {
  const LaunchConfig config{.grid = dim3(grid_of(p)),
                            .block = dim3(kDecodeWarps * 32),
                            .smem_bytes = sizeof(DecodeSmem<kFp8>)};
  return launch(flash_decode_kernel<kFp8>, config, stream, p,
                decode_shape(p, static_cast<int>(config.grid.x)));
}

}  // namespace

int64_t flash_decode_workspace(const FlashDecodeParams& p) {
  return DecodeWorkspace::words(p.tokens * p.group, grid_of(p));
}

cudaError_t flash_decode(const FlashDecodeParams& p, cudaStream_t stream) {
  return p.fp8_cache ? launch_decode<true>(p, stream) : launch_decode<false>(p, stream);
}

}  // namespace l4k
