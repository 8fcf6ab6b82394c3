// From int4 codes to bf16: nine instructions for eight weights.
//
// A pair of codes comes out of a word with one LOP3, as the lowest bits (or bits 4 to 7) of two bf16.
// Subnormals of bf16 are as far apart as the numbers of its first binade, so all 16 codes are linear
// there: code * 2^-133, or 16 times that in the row eight below. One packed multiply-add makes
// (code - zero) / 64 and (code - zero) / 4 of them, exactly. The two factors are left to the end of
// the sums, which hold rows apart.
#pragma once
#include "ptx/arithmetic.cuh"
#include "tile/int4.h"

namespace l4k {

// What the sums of rows g and g + 8 are multiplied with in the end.
constexpr float kInt4Factors[2] = {64.f, 4.f};

// What is added to the pairs of row g and of row g + 8: -zero over the factor, as two bf16 each.
struct Int4Constants {
  uint32_t rows[2];

  static __device__ __forceinline__ Int4Constants symmetric() { return {{0xbe00be00, 0xc000c000}}; }
};

constexpr uint32_t kInt4Huge = 0x7f007f00;  // 2^127, twice

// Eight codes of a word as the left operand of a product m16n8k16: each times its row's power, plus its
// row's constant.
__device__ __forceinline__ void int4_to_bf16(uint32_t word, const uint32_t (&powers)[2],
                                             const Int4Constants& constants, uint32_t (&left)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    left[i] = ptx::fma_bf16x2(word & 0x000f000f, powers[0], constants.rows[0]);
    left[i + 1] = ptx::fma_bf16x2(word & 0x00f000f0, powers[1], constants.rows[1]);
    word >>= 8;
  }
}

__device__ __forceinline__ void int4_to_bf16(uint32_t word, const Int4Constants& constants,
                                             uint32_t (&left)[4]) {
  int4_to_bf16(word, {kInt4Huge, kInt4Huge}, constants, left);
}

// The scales of rows g and g + 8 of a tile.
__device__ __forceinline__ float2 int4_scales(const char* tile, int group, int lane,
                                              const Int4Tile& layout) {
  const uint32_t pair =
      *reinterpret_cast<const uint32_t*>(tile + layout.scales(group) + lane / 4 * 4);
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}

__device__ __forceinline__ Int4Constants int4_constants(const char* tile, int group, int lane,
                                                        const Int4Tile& layout) {
  if (!layout.zeros) return Int4Constants::symmetric();
  const uint32_t zeros =
      *reinterpret_cast<const uint16_t*>(tile + layout.zero_points(group) + lane / 4 * 2);
  // As a pair of codes, times -2^127.
  constexpr uint32_t kMinusHuge = kInt4Huge | 0x80008000, kMinusZero = 0x80008000;
  return {{ptx::fma_bf16x2((zeros & 0xff) * 0x10001, kMinusHuge, kMinusZero),
           ptx::fma_bf16x2((zeros >> 8) * 0x100010, kMinusHuge, kMinusZero)}};
}

}  // namespace l4k
