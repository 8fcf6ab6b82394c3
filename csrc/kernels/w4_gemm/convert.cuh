// From codes in shared memory to the left operand of wgmma: (code - zero) * scale over the row's factor
// (tile/int4.cuh), rounded to bf16 once.
#pragma once
#include "tile/int4.cuh"

namespace l4k {

// A part of a tile: 16 rows x 64 of K, a half of it. kPlain: one group of 128 and no zero points, so that
// factors are set once a tile.
template <bool kPlain>
struct W4Converter {
  static constexpr int kQuarters = kPlain ? 1 : 2;  // of a tile's K, whose factors may differ
  const Int4Tile& layout;
  // Plain codes become weights by one multiplication and addition where all scales are below 2, so that
  // their products with 2^127 are finite. Same bits: 8 * scale is exact, as is a difference of codes.
  bool fused = false;
  // Of rows g and g + 8: what codes are multiplied with, what is added, and the scales.
  uint32_t powers[kQuarters][2], scales[kQuarters][2];
  Int4Constants constants[kQuarters];

  __device__ __forceinline__ explicit W4Converter(const Int4Tile& layout) : layout(layout) {}

  // What a lane wants of a part: a word a k16.
  static __device__ __forceinline__ uint4 load(const char* tile, int half) {
    return *reinterpret_cast<const uint4*>(tile + half * (2 * kInt4CodeWords) +
                                           16 * (threadIdx.x % 32));
  }

  // The operands of four products of k16.
  __device__ __forceinline__ void convert(const uint4& codes, const char* tile, int half,
                                          uint32_t (&a)[4][4]) {
    if (!kPlain || half == 0) set_factors(tile, half);
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int quarter = step * kQuarters / 4;
      int4_to_bf16(words[step], powers[quarter], constants[quarter], a[step]);
    }
    if (fused) return;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[step][i] = ptx::mul_bf16x2(a[step][i], scales[step * kQuarters / 4][i % 2]);
    }
  }

 private:
  __device__ __forceinline__ void set_factors(const char* tile, int half) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kQuarters; ++i) {
      const int group = kPlain ? 0 : static_cast<unsigned>((2 * half + i) * layout.groups) / 4;
      const uint32_t pair =
          *reinterpret_cast<const uint32_t*>(tile + layout.scales(group) + lane / 4 * 4);
      // The highest bit of an exponent says 2 or more.
      if (kPlain) fused = !__any_sync(0xffffffff, pair & 0x40004000);
      constants[i] =
          kPlain ? Int4Constants::symmetric() : int4_constants(tile, group, lane, layout);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        scales[i][h] = __byte_perm(pair, 0, h == 0 ? 0x1010 : 0x3232);
        powers[i][h] = kInt4Huge;
        if (!fused) continue;
        powers[i][h] = ptx::mul_bf16x2(scales[i][h], kInt4Huge);
        constants[i].rows[h] = ptx::mul_bf16x2(scales[i][h], constants[i].rows[h]);
      }
    }
  }
};

}  // namespace l4k
