// What comes next, found out by a warp that has nothing else to do: the tiles of this CTA, so that
// nobody divides between two of them, and what an epilogue reads besides sums, into L1.
#pragma once
#include "kernels/gemm/configs.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/smem.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/schedule.h"

namespace l4k {

// Sub-tiles of a tile that hold rows of its expert.
template <int I>
__device__ __forceinline__ int sub_tiles_of(const RaggedTile& tile) {
  return kGemmConfigs[I].sub_tiles() == 1 || tile.row + 128 >= tile.row_end ? 1 : 2;
}

// Whether the CTAs of a cluster have a column of tiles in common, and so B's boxes.
template <int I>
__device__ __forceinline__ bool shares_b(const GemmCluster& cluster, const RaggedTile& tile) {
  constexpr GemmConfig C = kGemmConfigs[I];
  return C.cluster_m > 1 && !tile.tail && !(C.split_k && cluster.splits > 1);
}

// How many stages of the ring hold the residual of a tile, after its K blocks: all CTAs of a cluster
// have as many. None where the tile holds rows of another expert, which somebody else may store to.
template <int I>
__device__ __forceinline__ int residual_stages(const RaggedTile& tile, const GemmParams& p,
                                               const GemmCluster& cluster) {
  constexpr GemmConfig C = kGemmConfigs[I];
  if (C.swap || !p.residual_boxes) return 0;
  const int rows = shares_b<I>(cluster, tile) ? C.block_m * C.cluster_m : C.block_m;
  if (tile.row + rows > tile.row_end && tile.row_end < p.m) return 0;
  const bool halves = p.epilogue.activation == Activation::kSwiglu;
  return sub_tiles_of<I>(tile) * ceil_div(halves ? C.block_n / 2 : C.block_n, kGemmRound);
}

// What one CTA does of a tile.
template <int I>
__device__ __forceinline__ GemmShare share_of(RaggedTile tile, const GemmParams& p,
                                              const GemmCluster& cluster) {
  constexpr GemmConfig C = kGemmConfigs[I];
  const int k_blocks = ceil_div(p.k, C.block_k());
  const int residual = residual_stages<I>(tile, p, cluster);
  if constexpr (C.swap || C.split_k) {
    if (cluster.splits > 1)
      return {tile, k_blocks * cluster.rank / cluster.splits,
              k_blocks * (cluster.rank + 1) / cluster.splits, residual};
  }
  if constexpr (C.swap) {
    if (p.d_scale != nullptr) tile.column += cluster.rank * C.block_n;
  } else {
    if (C.cluster_n > 1 || tile.tail) tile.column += cluster.rank * C.block_n;
    else tile.row += cluster.rank * C.block_m;
  }
  return {tile, 0, k_blocks, residual};
}

// A sector of 32 bytes holds eight factors.
template <int I>
__device__ __forceinline__ void touch_factors(const GemmParams& p, const RaggedTile& tile) {
  constexpr GemmConfig C = kGemmConfigs[I];
  const int lane = threadIdx.x % 32;
  const float* channels = channel_factors(p.scales, tile.expert, p.n);
  const auto* bias = static_cast<const __nv_bfloat16*>(p.epilogue.bias);
  for (int column = tile.column + 8 * lane; column < min(tile.column + C.block_n, p.n);
       column += 256) {
    if (C.fp8 && channels != nullptr) ptx::touch(channels + column);
    if (bias != nullptr) ptx::touch(bias + column);
  }
  const bool rows = C.fp8 && p.scales.kind_a == GemmScale::kRow;
  for (int row = tile.row + 8 * lane; row < min(tile.row + C.block_m, tile.row_end); row += 256) {
    if (rows) ptx::touch(p.scales.a + row);
    if (p.epilogue.row_scale != nullptr) ptx::touch(p.epilogue.row_scale + row);
  }
}

// By a warp: all tiles of this CTA, and then one that does not exist.
template <int I>
__device__ __forceinline__ void publish_tiles(GemmSmem<I>& smem, const RaggedSchedule& schedule,
                                              const GemmParams& p) {
  Stage<kGemmTiles> slot;
  for (int index = smem.cluster.index;; index += smem.cluster.count, slot.advance()) {
    GemmShare share = {.tile = {.expert = -1}};
    if (index < schedule.num_tiles()) share = share_of<I>(schedule.at(index), p, smem.cluster);
    smem.tile_ring.wait_empty(slot);
    if (threadIdx.x % 32 == 0) {
      smem.tiles[slot.index] = share;
      ptx::mbarrier_arrive(&smem.tile_ring.full[slot.index]);
    }
    if (!share.exists()) return;
    ptx::grid_dependency_wait();  // factors may be the previous kernel's; later ones return at once
    touch_factors<I>(p, share.tile);
  }
}

// The next published tile.
template <int I>
__device__ __forceinline__ const GemmShare& next_tile(GemmSmem<I>& smem,
                                                      const Stage<kGemmTiles>& slot) {
  smem.tile_ring.wait_full(slot);
  return smem.tiles[slot.index];
}

// The same for good, by a whole warp or by its first lane alone: its place is free then.
template <int kLanes, int I>
__device__ __forceinline__ GemmShare take_tile(GemmSmem<I>& smem, Stage<kGemmTiles>& slot) {
  const GemmShare share = next_tile(smem, slot);
  if constexpr (kLanes > 1) __syncwarp();
  if (threadIdx.x % 32 == 0) smem.tile_ring.release(slot.index);
  slot.advance();
  return share;
}

}  // namespace l4k
