// How a warp multiplies one unit of weights by the rows of A that lie in shared memory.
//
// A format is a class with the K of a unit, the bytes of a row of A in it, the stages of its ring and
// `multiply`: acc += unit * rows, acc being tensor-core sums [16 weight rows][8 tokens] per tile.
#pragma once
#include <cuda_bf16.h>

#include "kernels/stream_gemm/stream_gemm.h"
#include "ptx/arithmetic.cuh"
#include "ptx/mma.cuh"
#include "tile/int4.cuh"

namespace l4k {

// int4 in tiles. kPlain: one group of 128, no zero points: Llama 4's format, and the fast path.
template <bool kPlain>
struct Int4Weights {
  static constexpr int kUnitK = kInt4TileK, kElementBytes = 2, kRowBytes = kElementBytes * kUnitK;
  static constexpr int kMaxUnitBytes = kPlain ? Int4Tile{}.bytes() : Int4Tile{4, true}.bytes();
  static constexpr int kStages = 5;
  // What `multiply` leaves out of the sums of rows g and g + 8.
  static constexpr float kFactors[2] = {kInt4Factors[0], kInt4Factors[1]};

  static __device__ __forceinline__ int unit_bytes(const StreamGemmParams& p) {
    return kPlain ? kMaxUnitBytes : p.tile.bytes();
  }

  // `rows[j]`: this lane's address for ldmatrix in the rows of tile j, at the unit's first k.
  template <int kTiles>
  static __device__ __forceinline__ void multiply(float (&acc)[kTiles][4], const char* unit,
                                                  const uint32_t (&rows)[kTiles],
                                                  const StreamGemmParams& p) {
    const int lane = threadIdx.x % 32;
    uint4 codes[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      codes[half] = reinterpret_cast<const uint4*>(unit)[32 * half + lane];
    if constexpr (kPlain) {
      const float2 scale = int4_scales(unit, 0, lane, Int4Tile{});
      const Int4Constants constants = Int4Constants::symmetric();
      float sums[2][kTiles][4] = {};  // two chains: a product takes as long as eight others' issue
#pragma unroll
      for (int step = 0; step < kInt4Steps; step += 2)
        multiply_two(sums, codes, step, rows, constants);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) add_scaled(acc[j], sums[0][j], sums[1][j], scale);
    } else {
#pragma unroll
      for (int step = 0; step < kInt4Steps; step += 2) {  // 32 of K: the smallest group
        const int group = step / 2 * p.tile.groups / 4;
        const float2 scale = int4_scales(unit, group, lane, p.tile);
        const Int4Constants constants = int4_constants(unit, group, lane, p.tile);
        float sums[2][kTiles][4] = {};
        multiply_two(sums, codes, step, rows, constants);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) add_scaled(acc[j], sums[0][j], sums[1][j], scale);
      }
    }
  }

 private:
  // Two products of k16, one into each of the two sets of sums.
  template <int kTiles>
  static __device__ __forceinline__ void multiply_two(float (&sums)[2][kTiles][4],
                                                      const uint4 (&codes)[2], int step,
                                                      const uint32_t (&rows)[kTiles],
                                                      const Int4Constants& constants) {
    uint32_t left[2][4];
    const uint4& four = codes[step / 4];
    int4_to_bf16(step % 4 == 0 ? four.x : four.z, constants, left[0]);
    int4_to_bf16(step % 4 == 0 ? four.y : four.w, constants, left[1]);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      uint32_t right[4];
      ptx::ldmatrix_x4<false>(right, rows[j] + 32 * step);
      ptx::mma_m16n8k16<__nv_bfloat16>(sums[0][j], left[0], right[0], right[1]);
      ptx::mma_m16n8k16<__nv_bfloat16>(sums[1][j], left[1], right[2], right[3]);
    }
  }

  static __device__ __forceinline__ void add_scaled(float (&acc)[4], const float (&even)[4],
                                                    const float (&odd)[4], float2 scale) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[i] += (i < 2 ? scale.x : scale.y) * (even[i] + odd[i]);
  }
};

}  // namespace l4k
