// bf16 and e4m3 weights as their caller has them, [E, N, K]: a unit is a box of 16 rows by 128 bytes of
// K in TMA's 128-byte swizzle, zeros where it sticks out of the matrix.
#pragma once
#include <cuda.h>

#include <type_traits>

#include "kernels/stream_gemm/weights.cuh"
#include "tile/swizzle.h"

namespace l4k {

// e4m3 whose scales change along K: a unit is just as long as what shares one. The factors of this
// lane's two tokens of each tile.
template <int kTiles>
struct BlockFactors {
  const float* b;    // of the row tile's 128 channels; null: channels have a scale each
  int a[kTiles][2];  // where the tokens' scales begin

  __device__ __forceinline__ BlockFactors(const StreamGemmParams& p, const StreamItem& item,
                                          int tile) {
    const int blocks = p.k / kScaleBlock;
    const int64_t row = int64_t{item.expert} * ceil_div(p.n, kScaleBlock) + 16 * tile / kScaleBlock;
    b = p.scales.kind_b == GemmScale::kBlock ? p.scales.b + row * blocks + item.first_block
                                             : nullptr;
#pragma unroll
    for (int t = 0; t < 2 * kTiles; ++t) {
      const int token = t / 2 * 8 + threadIdx.x % 4 * 2 + t % 2;
      a[t / 2][t % 2] = (item.row + min(token, item.rows - 1)) * blocks + item.first_block;
    }
  }

  // `block` counts from the item's first.
  __device__ __forceinline__ void load(const StreamGemmParams& p, int block,
                                       float (&factors)[kTiles][2]) const {
    const float channels = b == nullptr ? 1.f : b[block];
#pragma unroll
    for (int t = 0; t < 2 * kTiles; ++t)
      factors[t / 2][t % 2] = channels * p.scales.a[a[t / 2][t % 2] + block];
  }
};

template <bool kFp8, bool kBlockScales = false>
struct RowMajorWeights {
  static_assert(kFp8 || !kBlockScales);
  static constexpr StreamUnit kUnit = stream_unit(kFp8 ? StreamFormat::kFp8 : StreamFormat::kBf16);
  static constexpr int kUnitK = kUnit.k, kRowBytes = kUnit.row_bytes, kElementBytes = kFp8 ? 1 : 2;
  static constexpr int kUnitRows = 16, kMaxUnitBytes = kUnitRows * kRowBytes;
  static constexpr int kWarpUnits = 1, kStages = 5, kCtasPerSm = 2;
  static constexpr int kFinishers = 4;
  static constexpr bool kTiled = false;
  static constexpr float kFactors[2] = {1.f, 1.f};
  static constexpr DeviceError kOffsetsError = DeviceError::kGemmExpertOffsets;
  static constexpr DeviceError kPermutationError = DeviceError::kGemmPermutation;
  using Source = CUtensorMap;
  template <int kTiles>
  using Factors = std::conditional_t<kBlockScales, BlockFactors<kTiles>, NoFactors<kTiles>>;

  static __device__ __forceinline__ int unit_bytes(const StreamGemmParams&) {
    return kMaxUnitBytes;
  }
  static __device__ __forceinline__ void load(char* smem, const StreamGemmParams&,
                                              const Source& map, const StreamSpan& span,
                                              uint64_t* full, uint64_t policy) {
    for (int i = 0; i < span.units; ++i)
      ptx::tma_load_3d(smem + i * kMaxUnitBytes, &map, full, (span.block + i) * kUnitK,
                       span.tile * kUnitRows, span.expert, policy);
  }
  static __device__ __forceinline__ void prefetch(const StreamGemmParams&, const Source& map,
                                                  const StreamSpan& span) {
#pragma unroll 1
    for (int i = 0; i < span.units; ++i)
      ptx::tma_prefetch_3d(&map, (span.block + i) * kUnitK, span.tile * kUnitRows, span.expert);
  }

  // `rows[j]`: this lane's address for ldmatrix in the rows of tile j, at the unit's first k. Rows of
  // weights and of A give their 16 bytes of a row to the four lanes of its number alike, so K comes in
  // the same order from both, whatever it is.
  template <int kUnits, int kTiles>
  static __device__ __forceinline__ void multiply(float (&acc)[kTiles][4], const char* unit,
                                                  const uint32_t (&rows)[kTiles],
                                                  const StreamGemmParams& p,
                                                  const Factors<kTiles>& factors, int block) {
    static_assert(kUnits == 1);
    float factor[kTiles][2], sums[kTiles][4] = {};
    if constexpr (kBlockScales) factors.load(p, block, factor);
    const int lane = threadIdx.x % 32;
    const uint32_t left =
        ptx::smem_address(unit) + swizzle_128(lane % kUnitRows * kRowBytes + lane / kUnitRows * 16);
#pragma unroll
    for (int step = 0; step < kRowBytes / 32; step += 2) {
      uint32_t weights[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) ptx::ldmatrix_x4<false>(weights[i], left ^ 32 * (step + i));
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        uint32_t tokens[4];
        ptx::ldmatrix_x4<false>(tokens, rows[j] + 32 * step);
        float (&to)[4] = kBlockScales ? sums[j] : acc[j];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          multiply_32_bytes(to, weights[i], tokens[2 * i], tokens[2 * i + 1]);
      }
    }
    if constexpr (kBlockScales) {
#pragma unroll
      for (int i = 0; i < 4 * kTiles; ++i)
        acc[i / 4][i % 4] += factor[i / 4][i % 2] * sums[i / 4][i % 4];
    }
  }

 private:
  // 16 rows of weights by 32 bytes of K: rows g and g + 8 of the first 16 bytes, then of the others.
  static __device__ __forceinline__ void multiply_32_bytes(float (&sums)[4],
                                                           const uint32_t (&weights)[4],
                                                           uint32_t token_low,
                                                           uint32_t token_high) {
    if constexpr (kFp8) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // 16 of K each
        uint32_t left[4], right[2];
        ptx::e4m3_to_f16(weights[2 * i], left[0], left[2]);
        ptx::e4m3_to_f16(weights[2 * i + 1], left[1], left[3]);
        ptx::e4m3_to_f16(i == 0 ? token_low : token_high, right[0], right[1]);
        ptx::mma_m16n8k16<__half>(sums, left, right[0], right[1]);
      }
    } else {
      ptx::mma_m16n8k16<__nv_bfloat16>(sums, weights, token_low, token_high);
    }
  }
};

}  // namespace l4k
