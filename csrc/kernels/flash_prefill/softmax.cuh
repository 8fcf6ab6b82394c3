// Online softmax of two rows per thread, over accumulators as wgmma leaves them: register r of S is
// row r / 2 % 2, column 8 (r / 4) + 2 (lane % 4) + r % 2. Four neighbouring lanes share a row.
#pragma once
#include "ptx/arithmetic.cuh"
#include "tile/mask.h"
#include "tile/vector.cuh"

namespace l4k {

// Columns outside of a row's span become -inf.
template <int kRegisters>
__device__ __forceinline__ void mask(float (&s)[kRegisters], const TileSpan (&seen)[2]) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int c = 8 * (r / 4) + r % 2 + column;
    if (c < seen[r / 2 % 2].first || c >= seen[r / 2 % 2].end) s[r] = kMinusInfinity;
  }
}

struct OnlineSoftmax {
  float scale;   // of S, times log2(e)
  float max[2];  // of S so far
  float sum[2];  // of this thread's weights, relative to `max`

  __device__ __forceinline__ explicit OnlineSoftmax(float scale)
      : scale(scale), max{kMinusInfinity, kMinusInfinity}, sum{0.f, 0.f} {}

  // S becomes the weights; what was summed up before is to be multiplied by `rescale`.
  template <int kRegisters>
  __device__ __forceinline__ void step(float (&s)[kRegisters], float (&rescale)[2]) {
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = max[h];
#pragma unroll
      for (int r = 2 * h; r < kRegisters; r += 4) m = fmaxf(m, fmaxf(s[r], s[r + 1]));
      m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
      // A row that has seen no key yet: inf - inf would be NaN.
      base[h] = m == kMinusInfinity ? 0.f : m * scale;
      rescale[h] = max[h] == kMinusInfinity ? 0.f : ptx::exp2_approx(max[h] * scale - base[h]);
      max[h] = m;
      sum[h] *= rescale[h];
    }
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      s[r] = ptx::exp2_approx(s[r] * scale - base[r / 2 % 2]);
      sum[r / 2 % 2] += s[r];
    }
  }

  // The sums over whole rows.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] += __shfl_xor_sync(0xffffffff, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffff, sum[h], 2);
    }
  }

  // Natural logarithm of a row's denominator; -inf if it sees nothing.
  __device__ __forceinline__ float lse(int h) const {
    constexpr float kLn2 = 0.6931471805599453f;
    return sum[h] == 0.f ? kMinusInfinity : (max[h] * scale + log2f(sum[h])) * kLn2;
  }
};

// An accumulator of 64 x 16 n as n A operands of 64 x 16: the same elements in the same threads.
template <int kBlocks>
__device__ __forceinline__ void to_operand(const float (&s)[8 * kBlocks],
                                           uint32_t (&p)[kBlocks][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) p[i / 4][i % 4] = pack_pair(s[2 * i], s[2 * i + 1]);
}

}  // namespace l4k
