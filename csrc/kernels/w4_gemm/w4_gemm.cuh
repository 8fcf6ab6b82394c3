// D[m, :] = act(row_scale[m] * (A[m, :] W[e(m)]^T) + bias) + residual[m, :], ragged by expert, W int4.
//
//   warpgroup 0, one warp         warpgroups 1, 2: 64 weight rows, or twice 64
//   wait empty -> copy W, A  ==>  wait full -> convert 64 of K, under the products of those before
//                                 -> 4 wgmma -> ... -> release ... -> meet -> finish
//
// barrier    arrives                          waits       promises
// full[s]    producer, and its copies' bytes  consumers   stage s holds W and A of one K block of 128
// empty[s]   a thread of each consumer warp   producer    nobody reads stage s any more
// named 1, 2 a consumer warpgroup             itself      its staging buffer is free / written
// named 3    both consumers                   both        their sums are stored; who is the last
//
// Weights take the 64 rows of wgmma, tokens its columns. Persistent: what a CTA does is in schedule.h; a
// role never talks to the other except through the ring, so the producer runs ahead into the next
// tile. See docs/kernels/w4_gemm.md.
#pragma once
#include <cuda.h>

#include "kernels/w4_gemm/convert.cuh"
#include "kernels/w4_gemm/epilogue.cuh"
#include "kernels/w4_gemm/load.cuh"
#include "kernels/w4_gemm/meet.cuh"
#include "kernels/w4_gemm/smem.cuh"
#include "kernels/w4_gemm/w4_gemm.h"
#include "ptx/wgmma.cuh"
#include "tile/experts.cuh"

namespace l4k {

// Columns of tiles that run side by side: weights are a quarter of the bytes of tokens.
constexpr int kW4Raster = 16;

// The sums of a piece. A block of 128 of K is made of parts of 64 weight rows x 64 of K a warpgroup: four
// products of k16 each. While a part is multiplied, the next is converted, into the other of two sets
// of registers: products in flight read theirs.
template <int I, bool kPlain, int kSubTiles, int kSums>
__device__ __forceinline__ void accumulate(float (&sums)[kSubTiles][kSums], W4GemmSmem<I>& smem,
                                           const Int4Tile& layout, const W4Piece& piece,
                                           const int (&row_tile)[kSubTiles],
                                           Stage<kW4GemmConfigs[I].stages>& stage) {
  constexpr W4GemmConfig C = kW4GemmConfigs[I];
  // Half an SM has no registers for two where factors take so many.
  constexpr int kSets = kPlain || C.ctas_per_sm() == 1 ? 2 : 1;
  const uint64_t tokens = ptx::smem_descriptor_sw128(smem.a[0][0]);
  W4Converter<kPlain> converter(layout);
  uint32_t a[kSets][4][4];
  // Each warp has read codes of its own.
  const auto release = [&](int index) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) smem.ring.release(index);
  };
  int previous = 0;
#pragma unroll 1
  for (int block = piece.first; block < piece.end; ++block, stage.advance()) {
    const auto tile = [&](int part) { return smem.w[stage.index][row_tile[part / 2]]; };
    smem.ring.wait_full(stage);
    uint4 codes = W4Converter<kPlain>::load(tile(0), 0);
#pragma unroll
    for (int part = 0; part < 2 * kSubTiles; ++part) {
      const int half = part % 2;
      converter.convert(codes, tile(part), half, a[half % kSets]);
      if (part + 1 < 2 * kSubTiles) codes = W4Converter<kPlain>::load(tile(part + 1), 1 - half);
      // Units of 16 bytes.
      const uint64_t b = tokens + (2 * stage.index + half) * (C.token_bytes() / 2 / 16);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step)
        ptx::WgmmaRegisterA<C.block_m, __nv_bfloat16>::template rs<false>(
            sums[part / 2], a[half % kSets][step], b + 2 * step, true);
      ptx::wgmma_commit();
      ptx::wgmma_wait<kSets - 1>();  // the registers that come next may change
      if (part == 0 && block > piece.first) release(previous);
    }
    previous = stage.index;
  }
  ptx::wgmma_wait<0>();
  release(previous);
}

template <int I>
__device__ __forceinline__ void consume(W4GemmSmem<I>& smem, const W4GemmParams& p, int consumer) {
  constexpr W4GemmConfig C = kW4GemmConfigs[I];
  Stage<C.stages> stage;
  for (W4Piece piece = smem.turn.first(); !piece.empty(); piece = smem.turn.next(piece)) {
    float sums[C.sub_tiles()][C.block_m / 2] = {};
    {
      const RaggedTile tile = smem.tiles.at(piece.tile);
      int row_tile[C.sub_tiles()];  // a warp past N repeats the last, and stores nothing
#pragma unroll
      for (int i = 0; i < C.sub_tiles(); ++i)
        row_tile[i] = min(8 * i + 4 * consumer + static_cast<int>(threadIdx.x) / 32 % 4,
                          row_tiles_of(p, tile, C.row_tiles()) - 1);
      if (p.tile.groups == 1 && !p.tile.zeros)
        accumulate<I, true>(sums, smem, p.tile, piece, row_tile, stage);
      else accumulate<I, false>(sums, smem, p.tile, piece, row_tile, stage);
    }
    if (smem.turn.schedule.split(piece) &&
        !meet<I>(reinterpret_cast<float (&)[C.sums()]>(sums), smem, p, piece.tile))
      continue;
    const RaggedTile tile = smem.tiles.at(piece.tile);
#pragma unroll
    for (int i = 0; i < C.sub_tiles(); ++i)
      finish<I>(sums[i], p,
                W4Place{tile, tile.column + 128 * i + 64 * consumer, smem.staging[consumer],
                        kW4BarrierStaging + consumer});
  }
}

template <int I>
__global__ void __launch_bounds__(kW4Threads, kW4GemmConfigs[I].ctas_per_sm())
    w4_gemm_kernel(const __grid_constant__ CUtensorMap map_a,
                   const __grid_constant__ W4GemmParams p) {
  constexpr W4GemmConfig C = kW4GemmConfigs[I];
  extern __shared__ __align__(1024) char dynamic_smem[];
  auto& smem = *reinterpret_cast<W4GemmSmem<I>*>(dynamic_smem);
  static_assert(sizeof(W4GemmSmem<I>) == C.smem_bytes());

  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&map_a);
    smem.ring.init(kW4Consumers / 32);
  }
  ptx::grid_launch_dependents();
  if (p.expert_offsets != nullptr) ptx::grid_dependency_wait();
  if (threadIdx.x < 32) {
    const RaggedSchedule tiles{.num_experts = p.num_experts,
                               .block_m = C.block_m,
                               .block_n = C.block_n,
                               .column_tiles = ceil_div(p.n, C.block_n),
                               .raster = kW4Raster,
                               .tail_tiles = false,
                               .row_ends = smem.row_ends,
                               .tile_ends = smem.tile_ends};
    scan_experts(p, DeviceError::kW4GemmExpertOffsets, tiles, smem.row_ends, smem.tile_ends);
    __syncwarp();
    if (threadIdx.x == 0) {
      smem.tiles = tiles;
      smem.turn = W4Turn::of(
          W4Schedule::of(tiles.num_tiles(), p.k / kInt4TileK, gridDim.x, C.may_split(p.m)),
          blockIdx.x);
    }
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    ptx::registers_decrease<C.producer_registers()>();
    if (threadIdx.x < 32) produce<I>(smem, map_a, p);
  } else {
    ptx::registers_increase<C.consumer_registers()>();
    ptx::grid_dependency_wait();
    clear_tail(p, smem.row_ends[p.num_experts - 1]);
    consume<I>(smem, p, warpgroup - 1);
  }
}

}  // namespace l4k
