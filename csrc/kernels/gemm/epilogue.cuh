// From accumulators to the result: scales, bias, activation, residual, store.
//
// A thread of a consumer warpgroup holds rows `row[0]`, `row[1]` (8 apart) and, of every 8 columns,
// two neighbours: acc[4 j + 2 h + i] is row[h], column 8 j + 2 (lane % 4) + i of the tile.
#pragma once
#include <cuda_bf16.h>

#include "kernels/gemm/gemm.h"
#include "kernels/gemm/smem.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "tile/activation.cuh"
#include "tile/epilogue.cuh"
#include "tile/fp8.cuh"
#include "tile/schedule.h"
#include "tile/swizzle.h"
#include "tile/vector.cuh"

namespace l4k {

// What one thread needs to know of its place in a tile.
struct GemmPlace {
  int warp, lane;  // in the warpgroup
  int row[2];      // in the whole matrix
  bool valid[2];   // the row belongs to the tile's expert
  int column;      // first column of this thread
};

__device__ __forceinline__ float2 load_pair(const void* base, int64_t index) {
  const auto* pairs = static_cast<const __nv_bfloat162*>(base);
  return __bfloat1622float2(pairs[index / 2]);
}

// Multiplies the scales that do not depend on K, then adds the bias.
template <int kRegisters>
__device__ __forceinline__ void scale_and_bias(float (&acc)[kRegisters], const GemmParams& p,
                                               const RaggedTile& tile, const GemmPlace& at) {
  float row[2];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    row[h] = at.valid[h] ? row_factor(p.epilogue, p.scales, at.row[h], tile.expert) : 1.f;
  const float* channel = channel_factors(p.scales, tile.expert, p.n);
#pragma unroll
  for (int j = 0; j < kRegisters / 4; ++j) {
    const int column = at.column + 8 * j;
    float2 factor = {1.f, 1.f}, offset = {0.f, 0.f};
    if (column < p.n) {
      if (channel != nullptr) factor = *reinterpret_cast<const float2*>(channel + column);
      if (p.epilogue.bias != nullptr) offset = load_pair(p.epilogue.bias, column);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      acc[4 * j + 2 * h] = acc[4 * j + 2 * h] * (row[h] * factor.x) + offset.x;
      acc[4 * j + 2 * h + 1] = acc[4 * j + 2 * h + 1] * (row[h] * factor.y) + offset.y;
    }
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
// float32 or 16 of bf16.
template <int kCount, int kRegisters>
__device__ __forceinline__ void store_direct(const float (&acc)[kRegisters], const GemmParams& p,
                                             const GemmPlace& at, int column, int columns) {
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const int c = column + 8 * j;
    if (c >= columns) continue;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!at.valid[h]) continue;
      const float2 value = {acc[4 * j + 2 * h], acc[4 * j + 2 * h + 1]};
      const int64_t index = int64_t{at.row[h]} * columns + c;
      if (p.epilogue.out_float32) {
        *reinterpret_cast<float2*>(static_cast<float*>(p.epilogue.d) + index) = value;
      } else {
        *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(p.epilogue.d) + index) =
            __float22bfloat162_rn(value);
      }
    }
  }
}

template <int kCount, int kRegisters>
__device__ __forceinline__ void add_residual(float (&acc)[kRegisters], const GemmParams& p,
                                             const GemmPlace& at, int column, int columns) {
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const int c = column + 8 * j;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!at.valid[h] || c >= columns) continue;
      const float2 value =
          load_pair(p.epilogue.residual, at.row[h] * p.epilogue.residual_stride + c);
      acc[4 * j + 2 * h] += value.x;
      acc[4 * j + 2 * h + 1] += value.y;
    }
  }
}

// Stages kCount registers of 64 rows, from kFirst on, as bf16 in swizzled boxes of kBox columns and hands
// them to TMA, which clips columns past N'. `staging` belongs to this warpgroup.
template <int kBox, int kFirst, int kCount, int kRegisters>
__device__ __forceinline__ void store_round(const float (&acc)[kRegisters],
                                            const CUtensorMap& map_d, char* staging,
                                            const GemmPlace& at, int barrier, int first_row,
                                            int first_column) {
  constexpr int kBoxBytes = 64 * kBox * 2;
  const int row = 16 * at.warp + at.lane % 16;
  // The last stores must have read the staging buffer before it is overwritten.
  if (at.warp == 0 && at.lane == 0) ptx::tma_store_wait_read<0>();
  ptx::named_barrier_sync(barrier, 128);
#pragma unroll
  for (int block = 0; block < kCount / 8; ++block) {  // 16 columns
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = kFirst + 8 * block + 2 * i;
      packed[i] = pack_pair(acc[r], acc[r + 1]);
    }
    char* box = staging + 16 * block / kBox * kBoxBytes;
    const uint32_t offset = row * 2 * kBox + 16 * block % kBox * 2 + at.lane / 16 * 16;
    ptx::stmatrix_x4(box + swizzle<2 * kBox>(offset), packed[0], packed[1], packed[2], packed[3]);
  }
  ptx::fence_proxy_async();
  ptx::named_barrier_sync(barrier, 128);
  if (at.warp == 0 && at.lane == 0) {
#pragma unroll
    for (int box = 0; box < 2 * kCount / kBox; ++box)
      ptx::tma_store_2d(&map_d, staging + box * kBoxBytes, first_column + 2 * kFirst + kBox * box,
                        first_row);
    ptx::tma_store_commit();
  }
}

// The staging buffer holds 64 registers of each thread: 128 columns.
template <int kBox, int kCount, int kRegisters>
__device__ __forceinline__ void store_staged(const float (&acc)[kRegisters],
                                             const CUtensorMap& map_d, char* staging,
                                             const GemmPlace& at, int barrier, int first_row,
                                             int first_column) {
  store_round < kBox, 0,
      kCount<64 ? kCount : 64>(acc, map_d, staging, at, barrier, first_row, first_column);
  if constexpr (kCount > 64)
    store_round<kBox, 64, kCount - 64>(acc, map_d, staging, at, barrier, first_row, first_column);
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

// SwiGLU to e4m3 with one scale per row and 128 results. Two CTAs hold 64 of them each and exchange
// the largest values of their rows. Called for every tile, so `parity` alternates: it is the phase
// of the cluster barrier and the half of the table.
template <int I, int kRegisters>
__device__ __forceinline__ void finish_fp8(float (&acc)[kRegisters], const GemmParams& p,
                                           GemmSmem<I>& smem, const RaggedTile& tile,
                                           const GemmPlace& at, uint32_t parity) {
  constexpr GemmConfig C = kGemmConfigs[I];
  scale_and_bias(acc, p, tile, at);
  swiglu(acc);
  uint32_t amax[2] = {};
#pragma unroll
  for (int r = 0; r < kRegisters / 2; ++r)
    amax[r / 2 % 2] = max(amax[r / 2 % 2], __float_as_uint(acc[r]) & 0x7fffffff);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    amax[h] = max(amax[h], __shfl_xor_sync(0xffffffff, amax[h], 1));
    amax[h] = max(amax[h], __shfl_xor_sync(0xffffffff, amax[h], 2));
  }
  auto* table = reinterpret_cast<uint32_t*>(smem.staging) + parity * C.block_m;
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (at.lane % 4 == 0) table[at.row[h] - tile.row] = amax[h];
  smem.cluster_barrier.arrive(kBarrierConsumers, kGemmConsumers, threadIdx.x - 128, C.cluster());
  smem.cluster_barrier.wait(parity);
#pragma unroll
  for (int h = 0; h < 2; ++h)
    amax[h] = max(amax[h], ptx::load_cluster(&table[at.row[h] - tile.row], smem.cluster.rank ^ 1));
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
template <int kBox, int kCount, int kRegisters>
__device__ __forceinline__ void store(float (&acc)[kRegisters], const GemmParams& p,
                                      const CUtensorMap& map_d, char* staging,
                                      const RaggedTile& tile, const GemmPlace& at, int barrier,
                                      int first_row) {
  constexpr int kHalves = kRegisters / kCount;  // SwiGLU leaves half of the columns
  const int columns = p.n / kHalves, first_column = tile.column / kHalves;
  const int column = first_column + 2 * (at.lane % 4);
  if (p.epilogue.residual != nullptr) add_residual<kCount>(acc, p, at, column, columns);
  if (first_row + 64 <= tile.row_end && !p.epilogue.out_float32) {
    store_staged<kBox, kCount>(acc, map_d, staging, at, barrier, first_row, first_column);
  } else {
    store_direct<kCount>(acc, p, at, column, columns);
  }
}

// All of the above for one warpgroup's 64 rows of a tile.
template <int I, int kRegisters>
__device__ __forceinline__ void finish(float (&acc)[kRegisters], const GemmParams& p,
                                       const CUtensorMap& map_d, char* staging,
                                       const RaggedTile& tile, const GemmPlace& at, int barrier,
                                       int first_row) {
  constexpr GemmConfig C = kGemmConfigs[I];
  scale_and_bias(acc, p, tile, at);
  if constexpr (C.swiglu() && !C.gelu) {
    if (p.epilogue.activation == Activation::kSwiglu) {
      swiglu(acc);
      store<C.result_box(), kRegisters / 2>(acc, p, map_d, staging, tile, at, barrier, first_row);
      return;
    }
  }
  if constexpr (C.gelu) gelu(acc);
  store<C.result_box(), kRegisters>(acc, p, map_d, staging, tile, at, barrier, first_row);
}

}  // namespace l4k
