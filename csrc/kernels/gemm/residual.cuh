// The residual of a tile. Where the tile's rows are all its own it comes through the ring, after the
// tile's K blocks and by the same producer, so that it is there when the products are done; else every
// thread loads its pairs, all of them before it adds the first.
//
// A stage of the ring has room for 128 columns: those of the first consumer's 64 rows where A lies,
// those of the second's where B lies, as boxes of 64 rows that look like the staged result.
#pragma once
#include <cuda_bf16.h>

#include "kernels/gemm/smem.cuh"
#include "ptx/mma.cuh"
#include "ptx/tma.cuh"
#include "tile/swizzle.h"

namespace l4k {

// What one thread needs to know of its place in a tile.
struct GemmPlace {
  int warp, lane;  // in the warpgroup
  int row[2];      // in the whole matrix
  bool valid[2];   // the row belongs to the tile's expert
  int column;      // first column of this thread
};

// Where this lane's row of the `block`-th 16 columns lies in boxes of 64 rows, for stmatrix and ldmatrix.
template <int kBox>
__device__ __forceinline__ uint32_t matrix_offset(const GemmPlace& at, int block) {
  const int row = 16 * at.warp + at.lane % 16, in_box = block % (kBox / 16);
  const uint32_t offset = row * 2 * kBox + in_box * 32 + at.lane / 16 * 16;
  return block / (kBox / 16) * (64 * 2 * kBox) + swizzle<2 * kBox>(offset);
}

// The part of a tile's residual that its i-th stage holds: 128 rows of so many columns.
struct ResidualPart {
  int column, row, columns;
};

template <int I>
__device__ __forceinline__ ResidualPart residual_part(const GemmParams& p, const RaggedTile& tile,
                                                      int i) {
  constexpr GemmConfig C = kGemmConfigs[I];
  const int halves = p.epilogue.activation == Activation::kSwiglu ? 2 : 1;
  const int width = C.block_n / halves, rounds = ceil_div(width, kGemmRound);
  const int first = i % rounds * kGemmRound;
  return {tile.column / halves + first, tile.row + i / rounds * 128,
          min(width - first, kGemmRound)};
}

// Into L2 while the products run: in the end all CTAs would ask DRAM for theirs at the same time.
template <int I>
__device__ __forceinline__ void prefetch_residual(const CUtensorMap& map_residual,
                                                  const GemmParams& p, const GemmShare& share) {
#pragma unroll 1
  for (int i = 0; i < share.residual_stages; ++i) {
    const ResidualPart part = residual_part<I>(p, share.tile, i);
#pragma unroll 1
    for (int column = 0; column < part.columns; column += kGemmConfigs[I].result_box()) {
      ptx::tma_prefetch_2d(&map_residual, part.column + column, part.row);
      ptx::tma_prefetch_2d(&map_residual, part.column + column, part.row + 64);
    }
  }
}

// Loads what follows a tile's K blocks.
template <int I>
__device__ __forceinline__ void load_residual(GemmSmem<I>& smem, const CUtensorMap& map_residual,
                                              const GemmParams& p, const GemmShare& share,
                                              Stage<kGemmConfigs[I].stages>& stage) {
#pragma unroll 1
  for (int i = 0; i < share.residual_stages; ++i, stage.advance()) {
    const ResidualPart part = residual_part<I>(p, share.tile, i);
    smem.ring.wait_empty(stage);
    uint64_t* full = &smem.ring.full[stage.index];
    ptx::mbarrier_arrive_expect_tx(full, 128 * 2 * part.columns);
#pragma unroll 1
    for (int column = 0; column < part.columns; column += kGemmConfigs[I].result_box()) {
      const int x = part.column + column;
      ptx::tma_load_2d(smem.a[stage.index] + column * 128, &map_residual, full, x, part.row);
      ptx::tma_load_2d(smem.b[stage.index] + column * 128, &map_residual, full, x, part.row + 64);
    }
  }
}

// Adds a warpgroup's 64 rows. The stages are its own to release once all its warps have come so far.
template <int I, int kCount, int kRegisters>
__device__ __forceinline__ void add_from_ring(float (&acc)[kRegisters], GemmSmem<I>& smem,
                                              Stage<kGemmConfigs[I].stages>& stage,
                                              const GemmPlace& at, int consumer) {
#pragma unroll
  for (int first = 0; first < kCount; first += kGemmRound / 2, stage.advance()) {
    smem.ring.wait_full(stage);
    const char* rows = consumer == 0 ? smem.a[stage.index] : smem.b[stage.index];
#pragma unroll
    for (int r = first; r < min(first + kGemmRound / 2, kCount); r += 8) {
      uint32_t pairs[4];
      const uint32_t offset = matrix_offset<kGemmConfigs[I].result_box()>(at, (r - first) / 8);
      ptx::ldmatrix_x4<false>(pairs, ptx::smem_address(rows + offset));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(pairs[i]));
        acc[r + 2 * i] += pair.x;
        acc[r + 2 * i + 1] += pair.y;
      }
    }
  }
}

// The stages of a consumer whose rows another CTA finishes.
template <int I>
__device__ __forceinline__ void skip_residual(GemmSmem<I>& smem,
                                              Stage<kGemmConfigs[I].stages>& stage, int stages) {
  for (int i = 0; i < stages; ++i, stage.advance()) {
    smem.ring.wait_full(stage);
    release(smem, stage.index);
  }
}

// `column` is the thread's first one of `columns`.
template <int kCount, int kRegisters>
__device__ __forceinline__ void add_residual(float (&acc)[kRegisters], const Epilogue& epilogue,
                                             const GemmPlace& at, int column, int columns) {
  const auto* residual = static_cast<const __nv_bfloat16*>(epilogue.residual);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!at.valid[h]) continue;
    const auto* row = reinterpret_cast<const __nv_bfloat162*>(
        residual + at.row[h] * epilogue.residual_stride + column);
    __nv_bfloat162 pairs[kCount / 4] = {};
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j)
      if (8 * j < columns - column) pairs[j] = row[4 * j];
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      const float2 value = __bfloat1622float2(pairs[j]);
      acc[4 * j + 2 * h] += value.x;
      acc[4 * j + 2 * h + 1] += value.y;
    }
  }
}

}  // namespace l4k
