#include "kernels/flash_decode/flash_decode.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "kernels/flash_decode/append.cuh"
#include "kernels/flash_decode/planner.cuh"

namespace l4k {

namespace {

DecodeShape shape_of(const FlashDecodeParams& p) {
  return flash_decode_shape({.batch = p.batch,
                             .kv_heads = p.kv_heads,
                             .group = p.group,
                             .tokens = p.tokens,
                             .chunk = p.chunk,
                             .addressed = int64_t{p.max_pages} * p.page_size});
}

template <typename Smem, typename Params>
cudaError_t launch_decode(void (*kernel)(Params, DecodeLaunch), const FlashDecodeParams& attention,
                          const Params& p, cudaStream_t stream) {
  const DecodeShape shape = shape_of(attention);
  if (attention.makes_plan) {
    const cudaError_t error =
        flash_decode_plan({{kDecodePlanKind, shape}, attention.seqlens_k, attention.plan}, stream);
    if (error != cudaSuccess) return error;
  }
  const LaunchConfig config{
      .grid = dim3(shape.grid), .block = dim3(kDecodeThreads), .smem_bytes = sizeof(Smem)};
  return launch(kernel, config, stream, p, DecodeLaunch{shape, decode_plan_bounds(shape)});
}

}  // namespace

// The grid, too, is decided by shapes alone: one CTA per SM, fewer where even full block tables hold
// fewer tiles.
DecodeShape flash_decode_shape(const DecodeCall& call) {
  const int row_blocks = ceil_div(call.tokens * call.group, kDecodeRows);
  const int64_t items = int64_t{call.batch} * call.kv_heads * row_blocks;
  const int capacity = decode_capacity(call.addressed, items);
  const int64_t tiles = std::max<int64_t>(ceil_div<int64_t>(capacity, kDecodeTile), 1);
  const int64_t grid = std::min<int64_t>(items * tiles, std::min(sm_count(), kDecodeMaxGrid));
  return {.batch = call.batch,
          .kv_heads = call.kv_heads,
          .row_blocks = row_blocks,
          .tokens = call.tokens,
          .chunk = call.chunk,
          .capacity = capacity,
          .grid = static_cast<int>(grid)};
}

int64_t flash_decode_workspace(const FlashDecodeParams& p) {
  return DecodeWorkspace::words(p.tokens * p.group, shape_of(p).grid);
}

cudaError_t flash_decode_plan(const FlashDecodePlanParams& p, cudaStream_t stream) {
  const LaunchConfig config{.grid = dim3(1), .block = dim3(kDecodePlanThreads)};
  return launch(flash_decode_plan_kernel, config, stream, p);
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
