#include "kernels/flash_decode/flash_decode.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "kernels/flash_decode/append.cuh"

namespace l4k {

namespace {

// From shapes alone: one CTA per SM, fewer where even full block tables hold fewer tiles.
int grid_of(const FlashDecodeParams& p) {
  const DecodeShape shape = decode_shape(p, 0);
  const int64_t tiles = std::max<int64_t>(ceil_div<int64_t>(shape.capacity, kDecodeTile), 1);
  const int64_t items = int64_t{shape.batch} * shape.items;
  return static_cast<int>(std::min<int64_t>(items * tiles, std::min(sm_count(), kDecodeMaxGrid)));
}

template <typename Smem, typename Params>
cudaError_t launch_decode(void (*kernel)(Params, DecodeShape), const FlashDecodeParams& attention,
                          const Params& p, cudaStream_t stream) {
  const int grid = grid_of(attention);
  const LaunchConfig config{
      .grid = dim3(grid), .block = dim3(kDecodeWarps * 32), .smem_bytes = sizeof(Smem)};
  return launch(kernel, config, stream, p, decode_shape(attention, grid));
}

}  // namespace

int64_t flash_decode_workspace(const FlashDecodeParams& p) {
  return DecodeWorkspace::words(p.tokens * p.group, grid_of(p));
}

cudaError_t flash_decode(const FlashDecodeParams& p, cudaStream_t stream) {
  return p.fp8_cache ? launch_decode<DecodeSmem<true>>(flash_decode_kernel<true>, p, p, stream)
                     : launch_decode<DecodeSmem<false>>(flash_decode_kernel<false>, p, p, stream);
}

cudaError_t flash_decode_append(const FlashDecodeAppendParams& p, cudaStream_t stream) {
  const FlashDecodeParams& a = p.attention;
  return a.fp8_cache
             ? launch_decode<AppendSmem<true>>(flash_decode_append_kernel<true>, a, p, stream)
             : launch_decode<AppendSmem<false>>(flash_decode_append_kernel<false>, a, p, stream);
}

}  // namespace l4k
