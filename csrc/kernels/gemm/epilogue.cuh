// From accumulators to the result: scales, bias, activation, residual, store.
//
// A thread of a consumer warpgroup holds rows `row[0]`, `row[1]` (8 apart) and, of every 8 columns,
// two neighbours: acc[4 j + 2 h + i] is row[h], column 8 j + 2 (lane % 4) + i of the tile. What is
// asked of all tiles alike is asked once, outside the loops over columns.
#pragma once
#include <cuda_bf16.h>

#include "kernels/gemm/gemm.h"
#include "kernels/gemm/residual.cuh"
#include "kernels/gemm/smem.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "tile/activation.cuh"
#include "tile/epilogue.cuh"
#include "tile/fp8.cuh"
#include "tile/schedule.h"
#include "tile/vector.cuh"

namespace l4k {

__device__ __forceinline__ float2 load_pair(const void* base, int64_t index) {
  const auto* pairs = static_cast<const __nv_bfloat162*>(base);
  return __bfloat1622float2(pairs[index / 2]);
}

// The factors of a thread's two rows: loaded before the last products are waited for.
struct RowFactors {
  float row[2];

  __device__ __forceinline__ RowFactors(const GemmParams& p, const RaggedTile& tile,
                                        const GemmPlace& at) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      row[h] = at.valid[h] ? row_factor(p.epilogue, p.scales, at.row[h], tile.expert) : 1.f;
  }
};

// Multiplies rows and, if `channel` is not null, columns; adds the bias if there is one. Both begin at
// the thread's first column, of `left` that exist: all of a whole tile.
template <bool kBias, bool kWhole, int kRegisters>
__device__ __forceinline__ void scale_columns(float (&acc)[kRegisters], const RowFactors& factors,
                                              const float* channel, const __nv_bfloat16* bias,
                                              int left) {
#pragma unroll
  for (int j = 0; j < kRegisters / 4; ++j) {
    float2 factor = {1.f, 1.f}, offset = {0.f, 0.f};
    if (channel != nullptr && (kWhole || 8 * j < left))
      factor = *reinterpret_cast<const float2*>(channel + 8 * j);
    if (kBias && (kWhole || 8 * j < left)) offset = load_pair(bias, 8 * j);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      acc[4 * j + 2 * h] = acc[4 * j + 2 * h] * (factors.row[h] * factor.x) + offset.x;
      acc[4 * j + 2 * h + 1] = acc[4 * j + 2 * h + 1] * (factors.row[h] * factor.y) + offset.y;
    }
  }
}

// Multiplies the scales that do not depend on K, then adds the bias. Nothing of it if there is none.
template <bool kFp8, int kRegisters>
__device__ __forceinline__ void scale_and_bias(float (&acc)[kRegisters], const GemmParams& p,
                                               const RaggedTile& tile, const GemmPlace& at,
                                               const RowFactors& factors) {
  const GemmScales scales = kFp8 ? p.scales : GemmScales{};
  const float* channel = channel_factors(scales, tile.expert, p.n);
  const auto* bias = static_cast<const __nv_bfloat16*>(p.epilogue.bias);
  const int left = p.n - at.column;
  if (channel != nullptr) channel += at.column;
  if (bias != nullptr) {
    scale_columns<true, false>(acc, factors, channel, bias + at.column, left);
  } else if (channel != nullptr && tile.column + 2 * kRegisters <= p.n) {
    scale_columns<false, true>(acc, factors, channel, bias, left);
  } else if (channel != nullptr) {
    scale_columns<false, false>(acc, factors, channel, bias, left);
  } else if (has_row_factor(p.epilogue, scales)) {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) acc[r] *= factors.row[r / 2 % 2];
  }
}

template <int kRegisters>
__device__ __forceinline__ void gelu(float (&acc)[kRegisters]) {
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) acc[r] = gelu(acc[r]);
}

// Blocks of 8 columns alternate between gate and up, so both factors of an output are in this
// thread; the results move into the first half of the registers.
template <int kRegisters>
__device__ __forceinline__ void swiglu(float (&acc)[kRegisters]) {
#pragma unroll
  for (int j = 0; j < kRegisters / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      acc[4 * j + i] = silu(acc[8 * j + i]) * acc[8 * j + 4 + i];
    }
  }
}

// Stores the first kCount registers row by row: ragged tails, float32. Four lanes make 32 bytes of
// float32 or 16 of bf16. `column` is the thread's first one of `columns`.
template <int kCount, int kRegisters>
__device__ __forceinline__ void store_direct(const float (&acc)[kRegisters], const Epilogue& e,
                                             const GemmPlace& at, int column, int columns) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!at.valid[h]) continue;
    const int64_t index = int64_t{at.row[h]} * columns + column;
    auto* wide = reinterpret_cast<float2*>(static_cast<float*>(e.d) + index);
    auto* narrow = reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(e.d) + index);
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      if (8 * j >= columns - column) continue;
      const float2 value = {acc[4 * j + 2 * h], acc[4 * j + 2 * h + 1]};
      if (e.out_float32) wide[4 * j] = value;
      else narrow[4 * j] = __float22bfloat162_rn(value);
    }
  }
}

// Stages a warpgroup's 64 rows as bf16 and hands them to TMA, which clips columns past N', a round of
// columns at a time. The staging buffer is free.
template <int kBox, int kCount, int kRegisters>
__device__ __forceinline__ void store_staged(const float (&acc)[kRegisters],
                                             const CUtensorMap& map_d, char* staging,
                                             const GemmPlace& at, int barrier, int first_row,
                                             int first_column) {
  constexpr int kRound = kGemmRound / 2;  // registers
  const bool elected = at.warp == 0 && at.lane == 0;
#pragma unroll
  for (int first = 0; first < kCount; first += kRound) {
    constexpr int kMost = kCount < kRound ? kCount : kRound;
    const int count = min(kCount - first, kMost);
    if (first > 0) {
      // The last round's stores must have read the buffer before it is overwritten.
      if (elected) ptx::tma_store_wait_read<0>();
      ptx::named_barrier_sync(barrier, 128);
    }
#pragma unroll
    for (int r = 0; r < count; r += 8) {  // 16 columns
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        packed[i] = pack_pair(acc[first + r + 2 * i], acc[first + r + 2 * i + 1]);
      ptx::stmatrix_x4(staging + matrix_offset<kBox>(at, r / 8), packed[0], packed[1], packed[2],
                       packed[3]);
    }
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(barrier, 128);
    if (elected) {
#pragma unroll
      for (int column = 0; column < 2 * count; column += kBox)
        ptx::tma_store_2d(&map_d, staging + column * 128, first_column + 2 * first + column,
                          first_row);
      ptx::tma_store_commit();
    }
  }
}

__device__ __forceinline__ uint32_t fp8_pair(float a, float b, float inverse) {
  return __nv_cvt_float2_to_fp8x2({a * inverse, b * inverse}, __NV_SATFINITE, __NV_E4M3);
}

// Four lanes share a row and hold two columns of every 8. Of four blocks of 8 e4m3 columns (pairs
// 0, 1 in `low`, 2, 3 in `high`) lane l of the four gets all of block l: 8 bytes of 32.
__device__ __forceinline__ uint2 transpose_quad(uint32_t low, uint32_t high, int lane) {
  const bool upper = lane & 2, odd = lane & 1;
  const uint32_t kept = upper ? high : low;
  const uint32_t got = __shfl_xor_sync(0xffffffff, upper ? low : high, 2);
  // Halves of one block from lanes l and l ^ 2; the neighbour wants the other block's.
  const uint32_t mine = __byte_perm(kept, got, odd ? 0x7632 : 0x5410);
  const uint32_t others =
      __shfl_xor_sync(0xffffffff, __byte_perm(kept, got, odd ? 0x5410 : 0x7632), 1);
  const uint32_t even_lanes = odd ? others : mine, odd_lanes = odd ? mine : others;
  const uint32_t first = __byte_perm(even_lanes, odd_lanes, upper ? 0x7632 : 0x5410);
  const uint32_t second = __byte_perm(even_lanes, odd_lanes, upper ? 0x5410 : 0x7632);
  return {first, second};
}

// SwiGLU results to e4m3 with one scale per row and 128 of them. Two CTAs hold 64 each and send each
// other the largest values of their rows: a warp meets only its twin, without a fence, so that the
// warpgroups of a CTA may drift apart. `exchange` counts the calls; tables and barriers alternate: a
// warp that has what its twin sent for this tile may send for the next one, and that may land before
// the rest of this one's. Nothing can land in a table that is still read: its last values had been read
// by all lanes when the warp sent the ones in between.
template <int I, int kRegisters>
__device__ __forceinline__ void store_fp8(float (&acc)[kRegisters], const GemmParams& p,
                                          GemmSmem<I>& smem, const RaggedTile& tile,
                                          const GemmPlace& at, int consumer, uint32_t exchange) {
  constexpr GemmConfig C = kGemmConfigs[I];
  uint32_t amax[2] = {};
#pragma unroll
  for (int r = 0; r < kRegisters / 2; ++r)
    amax[r / 2 % 2] = max(amax[r / 2 % 2], __float_as_uint(acc[r]) & 0x7fffffff);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    amax[h] = max(amax[h], __shfl_xor_sync(0xffffffff, amax[h], 1));
    amax[h] = max(amax[h], __shfl_xor_sync(0xffffffff, amax[h], 2));
  }
  auto* table = reinterpret_cast<uint32_t*>(smem.staging) + exchange % 2 * C.block_m;
  uint64_t* full = &smem.maxima_full[exchange % 2][4 * consumer + at.warp];
  if (at.lane == 0) ptx::mbarrier_arrive_expect_tx(full, 16 * sizeof(uint32_t));
  __syncwarp();
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (at.lane % 4 == 0)
      ptx::store_async(&table[at.row[h] - tile.row], smem.cluster.rank ^ 1, amax[h], full);
  ptx::mbarrier_wait_cluster(full, exchange / 2 % 2);
#pragma unroll
  for (int h = 0; h < 2; ++h) amax[h] = max(amax[h], table[at.row[h] - tile.row]);
  const int64_t columns = p.n / 2;
  const int first_column = tile.column / 2;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const Fp8Scale scale = fp8_scale(__uint_as_float(amax[h]));
    const int64_t index = at.row[h] * columns + first_column;
#pragma unroll
    for (int j = 0; j < kRegisters / 32; ++j) {  // 32 results of a row
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = 16 * j + 4 * i + 2 * h;
        pairs[i] = fp8_pair(acc[r], acc[r + 1], scale.inverse);
      }
      const uint2 block =
          transpose_quad(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16, at.lane);
      auto* q = static_cast<char*>(p.epilogue.d) + index + 32 * j + at.lane % 4 * 8;
      if (at.valid[h]) *reinterpret_cast<uint2*>(q) = block;
    }
    if (at.valid[h] && at.lane % 4 == 0 && index % kScaleBlock == 0)
      p.d_scale[index / kScaleBlock] = scale.scale;
  }
}

// Residual and store of the first kCount registers, by TMA where all 64 rows are the expert's.
template <int I, int kCount, int kRegisters>
__device__ __forceinline__ void store(float (&acc)[kRegisters], const GemmParams& p,
                                      const CUtensorMap& map_d, GemmSmem<I>& smem,
                                      Stage<kGemmConfigs[I].stages>& stage, const GemmShare& share,
                                      const GemmPlace& at, int consumer, int first_row) {
  constexpr GemmConfig C = kGemmConfigs[I];
  constexpr int kHalves = kRegisters / kCount;  // SwiGLU leaves half of the columns
  const int columns = p.n / kHalves, first_column = share.tile.column / kHalves;
  const int column = first_column + 2 * (at.lane % 4), barrier = kBarrierStaging + consumer;
  char* staging = smem.staging + consumer * C.result_bytes();
  Stage<C.stages> read = stage;
  if (share.residual_stages > 0) {
    add_from_ring<I, kCount>(acc, smem, stage, at, consumer);
  } else if (p.epilogue.residual != nullptr) {
    add_residual<kCount>(acc, p.epilogue, at, column, columns);
  }
  // The last tile's stores must have read the staging buffer, all warps the residual.
  if (at.warp == 0 && at.lane == 0) ptx::tma_store_wait_read<0>();
  ptx::named_barrier_sync(barrier, 128);
  if (share.residual_stages > 0) {
#pragma unroll
    for (int first = 0; first < 2 * kCount; first += kGemmRound, read.advance())
      release(smem, read.index);
  }
  if (first_row + 64 <= share.tile.row_end && !p.epilogue.out_float32) {
    store_staged<C.result_box(), kCount>(acc, map_d, staging, at, barrier, first_row, first_column);
  } else {
    store_direct<kCount>(acc, p.epilogue, at, column, columns);
  }
}

}  // namespace l4k
