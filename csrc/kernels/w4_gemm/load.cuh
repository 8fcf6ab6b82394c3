// The producer: one warp that fills the ring.
#pragma once
#include <cuda.h>

#include "kernels/w4_gemm/smem.cuh"
#include "kernels/w4_gemm/w4_gemm.h"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"

namespace l4k {

// Through all K blocks of this CTA, tile by tile.
struct W4Walk {
  const RaggedSchedule& tiles;
  const W4Schedule& schedule;
  W4Piece piece;
  RaggedTile tile;

  __device__ __forceinline__ W4Walk(const RaggedSchedule& tiles, const W4Schedule& schedule)
      : tiles(tiles), schedule(schedule), piece(schedule.first(blockIdx.x)) {
    if (!done()) tile = tiles.at(piece.tile);
  }
  __device__ __forceinline__ bool done() const { return piece.empty(); }
  __device__ __forceinline__ int block() const { return piece.first; }
  __device__ __forceinline__ void advance() {
    if (++piece.first < piece.end) return;
    piece = schedule.next(blockIdx.x, piece);
    if (!done()) tile = tiles.at(piece.tile);
  }
};

// Row tiles of 16 that a tile has: fewer at the end of N.
__device__ __forceinline__ int row_tiles_of(const W4GemmParams& p, const RaggedTile& tile,
                                            int most) {
  return min(most, (p.n - tile.column) / kInt4TileRows);
}

// Announces all bytes of a stage and copies its weights: lane i those of 16 rows.
template <int I>
__device__ __forceinline__ void load_weights(W4GemmSmem<I>& smem, const W4GemmParams& p, int stage,
                                             const W4Walk& walk) {
  constexpr W4GemmConfig C = kW4GemmConfigs[I];
  const int lane = threadIdx.x % 32, count = row_tiles_of(p, walk.tile, C.row_tiles());
  const int bytes = p.tile.bytes();
  uint64_t* full = &smem.ring.full[stage];
  if (lane == 0) ptx::mbarrier_arrive_expect_tx(full, C.token_bytes() + count * bytes);
  __syncwarp();
  if (lane >= count) return;
  const int64_t row_tile =
      int64_t{walk.tile.expert} * (p.n / kInt4TileRows) + walk.tile.column / kInt4TileRows + lane;
  const int64_t tile = row_tile * (p.k / kInt4TileK) + walk.block();
  ptx::bulk_load(smem.w[stage][lane], static_cast<const char*>(p.tiles) + tile * bytes, bytes,
                 full);
}

template <int I>
__device__ __forceinline__ void load_tokens(W4GemmSmem<I>& smem, const CUtensorMap& map_a,
                                            int stage, const W4Walk& walk) {
  if (threadIdx.x % 32 != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half)
    ptx::tma_load_2d(smem.a[stage][half], &map_a, &smem.ring.full[stage],
                     walk.block() * kInt4TileK + 64 * half, walk.tile.row);
}

// Weights that nobody has just written need not wait for the kernel before: those of a dense
// product fill the ring. Which expert's a ragged one needs that kernel may have to say.
template <int I>
__device__ __forceinline__ void produce(W4GemmSmem<I>& smem, const CUtensorMap& map_a,
                                        const W4GemmParams& p) {
  constexpr W4GemmConfig C = kW4GemmConfigs[I];
  int filled = 0;
  if (p.static_weights && p.expert_offsets == nullptr) {
    for (W4Walk ahead(smem.tiles, smem.schedule); filled < C.stages && !ahead.done();
         ++filled, ahead.advance())
      load_weights(smem, p, filled, ahead);
  }
  ptx::grid_dependency_wait();
  Stage<C.stages> stage;
  for (W4Walk walk(smem.tiles, smem.schedule); !walk.done(); walk.advance(), stage.advance()) {
    if (filled > 0) {
      --filled;
    } else {
      smem.ring.wait_empty(stage);
      load_weights(smem, p, stage.index, walk);
    }
    load_tokens(smem, map_a, stage.index, walk);
  }
}

}  // namespace l4k
