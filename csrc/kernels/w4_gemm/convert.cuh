// From codes in shared memory to the left operand of wgmma: (code - zero) * scale over the row's factor
// (tile/int4.cuh), rounded to bf16 once.
#pragma once
#include "tile/int4.cuh"

namespace l4k {

// A part of a tile: 16 rows x 64 of K, a half of it.
struct W4Converter {
  const Int4Tile& layout;
  bool plain;  // one group of 128 and no zero points: factors are set once a tile
  // Of each 32 of K; scales of rows g and g + 8, twice.
  Int4Constants constants[2] = {Int4Constants::symmetric(), Int4Constants::symmetric()};
  uint32_t scales[2][2];

  __device__ __forceinline__ explicit W4Converter(const Int4Tile& layout)
      : layout(layout), plain(layout.groups == 1 && !layout.zeros) {}

  // What a lane wants of a part: a word a k16.
  static __device__ __forceinline__ uint4 load(const char* tile, int half) {
    return *reinterpret_cast<const uint4*>(tile + half * (2 * kInt4CodeWords) +
                                           16 * (threadIdx.x % 32));
  }

  // The operands of four products of k16.
  __device__ __forceinline__ void convert(const uint4& codes, const char* tile, int half,
                                          uint32_t (&a)[4][4]) {
    if (half == 0 || !plain) set_factors(tile, half);
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      int4_to_bf16(words[step], constants[step / 2], a[step]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[step][i] = ptx::mul_bf16x2(a[step][i], scales[step / 2][i % 2]);
    }
  }

 private:
  __device__ __forceinline__ void set_factors(const char* tile, int half) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int group = static_cast<unsigned>((2 * half + i) * layout.groups) / 4;
      const uint32_t pair =
          *reinterpret_cast<const uint32_t*>(tile + layout.scales(group) + lane / 4 * 4);
      scales[i][0] = __byte_perm(pair, 0, 0x1010);
      scales[i][1] = __byte_perm(pair, 0, 0x3232);
      if (layout.zeros) constants[i] = int4_constants(tile, group, lane, layout);
    }
  }
};

}  // namespace l4k
