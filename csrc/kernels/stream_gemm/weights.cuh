// How a warp multiplies one unit of weights by the rows of A that lie in shared memory.
//
// A format is a class with `kTiled` (an expert's units lie one after the other, N and K end with a unit,
// no scales but their own), the K of a unit, the bytes of a row of A in it, the stages of its ring,
// `load` and `prefetch` of neighbouring units from its `Source`, `Factors` that change along K, and
// `multiply`: acc += units * rows, acc being tensor-core sums [16 weight rows][8 tokens] per tile.
#pragma once
#include <cuda_bf16.h>

#include "kernels/stream_gemm/stream_gemm.h"
#include "ptx/arithmetic.cuh"
#include "ptx/mma.cuh"
#include "ptx/tma.cuh"
#include "tile/error.h"
#include "tile/int4.cuh"

namespace l4k {

// Neighbouring units of a row tile, or of several that lie one after the other.
struct StreamSpan {
  int expert, tile, block;  // of the first
  int units;
};

// Where all factors wait until the end of the sums.
template <int kTiles>
struct NoFactors {
  __device__ __forceinline__ NoFactors(const StreamGemmParams&, const StreamItem&, int) {}
};

// int4 in tiles. kPlain: one group of 128, no zero points: Llama 4's format, and the fast path.
template <bool kPlain>
struct Int4Weights {
  static constexpr StreamUnit kUnit = stream_unit(StreamFormat::kInt4);
  static constexpr int kUnitK = kUnit.k, kRowBytes = kUnit.row_bytes, kElementBytes = 2;
  static constexpr int kUnitRows = kInt4TileRows, kWarpUnits = 2;
  static constexpr int kMaxUnitBytes = kPlain ? Int4Tile{}.bytes() : Int4Tile{4, true}.bytes();
  static constexpr int kStages = 5;
  static constexpr int kCtasPerSm = kPlain ? 2 : 1;  // with one tile of tokens
  static constexpr int kFinishers = kPlain ? 4 : 2;  // two more would leave 128 registers
  static constexpr bool kTiled = true;
  static constexpr DeviceError kOffsetsError = DeviceError::kW4GemmExpertOffsets;
  static constexpr DeviceError kPermutationError = DeviceError::kW4GemmPermutation;
  using Source = const char*;  // the tiles
  template <int kTiles>
  using Factors = NoFactors<kTiles>;
  // What `multiply` leaves out of the sums of rows g and g + 8.
  static constexpr float kFactors[2] = {kInt4Factors[0], kInt4Factors[1]};

  static __device__ __forceinline__ int unit_bytes(const StreamGemmParams& p) {
    return kPlain ? kMaxUnitBytes : p.tile.bytes();
  }

  static __device__ __forceinline__ const char* address(const StreamGemmParams& p,
                                                        const Source& tiles,
                                                        const StreamSpan& span) {
    const int64_t row_tile = int64_t{span.expert} * (p.n / kInt4TileRows) + span.tile;
    return tiles + (row_tile * (p.k / kUnitK) + span.block) * unit_bytes(p);
  }
  static __device__ __forceinline__ void load(char* smem, const StreamGemmParams& p,
                                              const Source& tiles, const StreamSpan& span,
                                              uint64_t* full, uint64_t policy) {
    ptx::bulk_load(smem, address(p, tiles, span), span.units * unit_bytes(p), full, policy);
  }
  static __device__ __forceinline__ void prefetch(const StreamGemmParams& p, const Source& tiles,
                                                  const StreamSpan& span) {
    ptx::bulk_prefetch(address(p, tiles, span), span.units * unit_bytes(p));
  }

  // kUnits neighbours of one row tile: each has sums of its own, so that products of one unit run
  // while those of the other wait. `rows[j]`: this lane's address for ldmatrix in the rows of tile j,
  // at the first unit's first k.
  template <int kUnits, int kTiles>
  static __device__ __forceinline__ void multiply(float (&acc)[kTiles][4], const char* units,
                                                  const uint32_t (&rows)[kTiles],
                                                  const StreamGemmParams& p, const Factors<kTiles>&,
                                                  int) {
    const int lane = threadIdx.x % 32, bytes = unit_bytes(p);
    constexpr int kSteps = kPlain ? kInt4Steps : 2;  // of a group: 32 of K are the smallest
    uint4 codes[kUnits][2];
#pragma unroll
    for (int i = 0; i < 2 * kUnits; ++i)
      codes[i / 2][i % 2] =
          reinterpret_cast<const uint4*>(units + i / 2 * bytes)[32 * (i % 2) + lane];
#pragma unroll
    for (int first = 0; first < kInt4Steps; first += kSteps) {
      float sums[kUnits][kTiles][4] = {};
      Int4Constants constants[kUnits];
      float2 scales[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const Int4Tile tile = kPlain ? Int4Tile{} : p.tile;
        const int group = kPlain ? 0 : first * p.tile.groups / kInt4Steps;
        scales[u] = int4_scales(units + u * bytes, group, lane, tile);
        constants[u] = int4_constants(units + u * bytes, group, lane, tile);
      }
#pragma unroll
      for (int step = first; step < first + kSteps; step += 2)
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
          multiply_two(sums[u], codes[u], step, rows, kRowBytes * u, constants[u]);
#pragma unroll
      for (int i = 0; i < kUnits * kTiles * 4; ++i) {
        const int u = i / 4 / kTiles, j = i / 4 % kTiles, r = i % 4;
        acc[j][r] += (r < 2 ? scales[u].x : scales[u].y) * sums[u][j][r];
      }
    }
  }

 private:
  // Two products of k16.
  template <int kTiles>
  static __device__ __forceinline__ void multiply_two(float (&sums)[kTiles][4],
                                                      const uint4 (&codes)[2], int step,
                                                      const uint32_t (&rows)[kTiles], int offset,
                                                      const Int4Constants& constants) {
    uint32_t left[2][4];
    const uint4& four = codes[step / 4];
    int4_to_bf16(step % 4 == 0 ? four.x : four.z, constants, left[0]);
    int4_to_bf16(step % 4 == 0 ? four.y : four.w, constants, left[1]);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      uint32_t right[4];
      ptx::ldmatrix_x4<false>(right, rows[j] + offset + 32 * step);
      ptx::mma_m16n8k16<__nv_bfloat16>(sums[j], left[0], right[0], right[1]);
      ptx::mma_m16n8k16<__nv_bfloat16>(sums[j], left[1], right[2], right[3]);
    }
  }
};

}  // namespace l4k
