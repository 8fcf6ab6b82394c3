#include "kernels/moe_permute/moe_permute.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "tile/row_tiles.h"

namespace l4k {

cudaError_t moe_permute(const MoePermuteParams& params, cudaStream_t stream) {
  const RowTiles tiles = tile_rows(params.row_vectors, kMoePermuteUnroll, kMoePermuteMaxThreads);
  // 48 registers: 1,344 threads fit an SM.
  const int64_t resident = int64_t{sm_count()} * (1344 / tiles.threads);
  const int64_t grid = std::min(params.rows * tiles.row_tiles, resident);
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(grid)), .block = dim3(tiles.threads)};
  return launch(moe_permute_kernel, config, stream, params, tiles.row_tiles);
}

}  // namespace l4k
