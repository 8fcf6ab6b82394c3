// The producer: one warp that fills the ring.
#pragma once
#include <cuda.h>

#include "kernels/w4_gemm/smem.cuh"
#include "kernels/w4_gemm/w4_gemm.h"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"

namespace l4k {

// Calls `visit(tile, K block)` for all of this CTA's, as long as it returns true.
template <int I, typename Visit>
__device__ __forceinline__ void walk(const W4GemmSmem<I>& smem, Visit visit) {
  for (W4Piece piece = smem.turn.first(); !piece.empty(); piece = smem.turn.next(piece)) {
    const RaggedTile tile = smem.tiles.at(piece.tile);
    for (int block = piece.first; block < piece.end; ++block)
      if (!visit(tile, block)) return;
  }
}

// Row tiles of 16 that a tile has: fewer at the end of N.
__device__ __forceinline__ int row_tiles_of(const W4GemmParams& p, const RaggedTile& tile,
                                            int most) {
  return min(most, (p.n - tile.column) / kInt4TileRows);
}

// Announces all bytes of a stage and copies its weights: lane i those of 16 rows.
template <int I>
__device__ __forceinline__ void load_weights(W4GemmSmem<I>& smem, const W4GemmParams& p, int stage,
                                             const RaggedTile& tile, int block) {
  constexpr W4GemmConfig C = kW4GemmConfigs[I];
  const int lane = threadIdx.x, count = row_tiles_of(p, tile, C.row_tiles());
  const int bytes = p.tile.bytes();
  uint64_t* full = &smem.ring.full[stage];
  if (lane == 0) ptx::mbarrier_arrive_expect_tx(full, C.token_bytes() + count * bytes);
  __syncwarp();
  if (lane >= count) return;
  const int64_t row_tile =
      int64_t{tile.expert} * (p.n / kInt4TileRows) + tile.column / kInt4TileRows + lane;
  const int64_t from = (row_tile * (p.k / kInt4TileK) + block) * bytes;
  ptx::bulk_load(smem.w[stage][lane], static_cast<const char*>(p.tiles) + from, bytes, full);
}

template <int I>
__device__ __forceinline__ void load_tokens(W4GemmSmem<I>& smem, const CUtensorMap& map_a,
                                            int stage, const RaggedTile& tile, int block) {
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half)
    ptx::tma_load_2d(smem.a[stage][half], &map_a, &smem.ring.full[stage],
                     block * kInt4TileK + 64 * half, tile.row);
}

// Weights that nobody has just written need not wait for the kernel before: those of a dense
// product fill the ring. Which expert's a ragged one needs that kernel may have to say.
template <int I>
__device__ __forceinline__ void produce(W4GemmSmem<I>& smem, const CUtensorMap& map_a,
                                        const W4GemmParams& p) {
  constexpr int kStages = kW4GemmConfigs[I].stages;
  int filled = 0;
  if (p.static_weights && p.expert_offsets == nullptr) {
    walk<I>(smem, [&](const RaggedTile& tile, int block) {
      load_weights(smem, p, filled, tile, block);
      return ++filled < kStages;
    });
  }
  ptx::grid_dependency_wait();
  Stage<kStages> stage;
  walk<I>(smem, [&](const RaggedTile& tile, int block) {
    if (filled > 0) {
      --filled;
    } else {
      smem.ring.wait_empty(stage);
      load_weights(smem, p, stage.index, tile, block);
    }
    load_tokens(smem, map_a, stage.index, tile, block);
    stage.advance();
    return true;
  });
}

}  // namespace l4k
