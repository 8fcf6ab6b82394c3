// From codes in shared memory to the left operand of wgmma: (code - zero) * scale / 64 for rows g,
// (code - zero) * scale / 4 for rows g + 8, rounded to bf16 once. Sums get the powers of two back.
#pragma once
#include <cuda_bf16.h>

#include "tile/int4.h"

namespace l4k {

// What sums of rows g and g + 8 are multiplied by in the end.
__device__ __forceinline__ constexpr float w4_sum_factor(int h) { return h == 0 ? 64.f : 4.f; }

__device__ __forceinline__ __nv_bfloat162 as_pair(uint32_t bits) {
  return reinterpret_cast<const __nv_bfloat162&>(bits);
}
__device__ __forceinline__ uint32_t as_bits(__nv_bfloat162 pair) {
  return reinterpret_cast<const uint32_t&>(pair);
}

// What makes weights of the codes of rows g and g + 8 in one group. bf16's subnormals and first binade
// have one spacing, 2^-133: codes in the lowest bits of a half word are code * 2^-133, 4 bits further
// up code * 2^-129. 2^127 is the greatest power there is, so that 1 / 64 and 1 / 4 remain.
struct W4Factors {
  uint32_t offsets[2] = {0xbe00be00, 0xc000c000};  // -zero / 64, -zero / 4; zero 8
  uint32_t scales[2];

  __device__ __forceinline__ void set_scales(uint32_t bits) {
    scales[0] = __byte_perm(bits, 0, 0x1010);
    scales[1] = __byte_perm(bits, 0, 0x3232);
  }
  __device__ __forceinline__ void set_zeros(uint32_t bytes) {
    const uint32_t biased[2] = {__byte_perm(bytes, 0x4300, 0x5050),  // 128 + zero
                                __byte_perm(bytes, 0x4300, 0x5151)};
    offsets[0] = as_bits(__hfma2(as_pair(biased[0]), as_pair(0xbc80bc80), as_pair(0x40004000)));
    offsets[1] = as_bits(__hfma2(as_pair(biased[1]), as_pair(0xbe80be80), as_pair(0x42004200)));
  }
  __device__ __forceinline__ uint32_t weights(uint32_t word, int h) const {
    const uint32_t codes = word & (0x000f000f << 4 * h);
    const __nv_bfloat162 difference =
        __hfma2(as_pair(codes), as_pair(0x7f007f00), as_pair(offsets[h]));
    return as_bits(__hmul2_rn(difference, as_pair(scales[h])));
  }
};

// Converts tiles, 64 of K after 64 of K. `plain`: one group of 128 and no zero points, so that factors are
// set once a tile.
struct W4Converter {
  const Int4Tile& layout;
  bool plain;
  W4Factors factors[2];  // of each 32 of K

  __device__ __forceinline__ explicit W4Converter(const Int4Tile& layout)
      : layout(layout), plain(layout.groups == 1 && !layout.zeros) {}

  // What one lane wants of 16 rows x 64 of K: a word a k16.
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
#pragma unroll
      for (int pair = 0; pair < 4; ++pair)  // rows g, g + 8, and the same at k + 8 and on
        a[step][pair] = factors[step / 2].weights(words[step] >> pair / 2 * 8, pair % 2);
    }
  }

 private:
  __device__ __forceinline__ void set_factors(const char* tile, int half) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int group = static_cast<unsigned>((2 * half + i) * layout.groups) / 4;
      factors[i].set_scales(
          *reinterpret_cast<const uint32_t*>(tile + layout.scales(group) + 4 * g));
      if (layout.zeros)
        factors[i].set_zeros(
            *reinterpret_cast<const uint16_t*>(tile + layout.zero_points(group) + 2 * g));
    }
  }
};

}  // namespace l4k
