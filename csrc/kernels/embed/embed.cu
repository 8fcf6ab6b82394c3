#include "kernels/embed/embed.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "tile/row_tiles.h"

namespace l4k {

cudaError_t embed(const EmbedParams& params, cudaStream_t stream) {
  const RowTiles tiles = tile_rows(params.row_vectors, kEmbedUnroll, kEmbedMaxThreads);
  const int64_t resident = int64_t{sm_count()} * (kEmbedCtas * kEmbedMaxThreads / tiles.threads);
  const int64_t grid = std::min(params.tokens * tiles.row_tiles, resident);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(grid)), .block = dim3(tiles.threads)};
  return launch(embed_kernel, config, stream, params, tiles.row_tiles);
}

}  // namespace l4k
