// Online softmax of two rows per thread, over accumulators as wgmma leaves them: register r of S is
// row r / 2 % 2, column 8 (r / 4) + 2 (lane % 4) + r % 2. Four neighbouring lanes share a row.
#pragma once
#include "ptx/arithmetic.cuh"
#include "tile/mask.h"
#include "tile/vector.cuh"

namespace l4k {

// Of a maximum in base 2. Past it the float32 grid is wider than the range of a weight, and rounding
// the maximum up would make weights of 1 vanish: such a row becomes NaN, not something plausible.
constexpr float kLargestBase = 0x1p28f;

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

// Weights are relative to a row's maximum and at most 2^kShift. f16 is as fine as float32 needs it
// only above 2^-14: with a shift of 15 it has 2^29 below the largest weight, and loses what is 2^-39
// of it. bf16 has the range of float32.
template <int kShift>
struct OnlineSoftmax {
  float scale[2];  // of S, times log2(e)
  float max[2];    // of S so far
  float sum[2];    // of this thread's weights, relative to `max`

  __device__ __forceinline__ explicit OnlineSoftmax(float scale)
      : scale{scale, scale}, max{kMinusInfinity, kMinusInfinity}, sum{0.f, 0.f} {}

  // The exponent that weights are relative to. Rounded up: no weight becomes larger than 2^kShift.
  __device__ __forceinline__ float base(int h, float maximum) const {
    return __fmaf_ru(maximum, scale[h], -kShift);
  }

  // What turns sums relative to `earlier`, a maximum, into sums relative to the one of now. Exactly
  // 1 if they are equal: a little less, a thousand times, would be a loss.
  __device__ __forceinline__ float rescale(int h, float earlier) const {
    // A row that has seen no key yet: inf - inf would be NaN.
    if (earlier == kMinusInfinity) return 0.f;
    return ptx::exp2_approx(base(h, earlier) - base(h, max[h]));
  }

  // S becomes the weights; what was summed up before is to be multiplied by `factor`.
  template <int kRegisters>
  __device__ __forceinline__ void step(float (&s)[kRegisters], float (&factor)[2]) {
    float relative_to[2], added[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float before = max[h];
      float m = before;
#pragma unroll
      for (int r = 2 * h; r < kRegisters; r += 4) m = fmaxf(m, fmaxf(s[r], s[r + 1]));
      m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
      max[h] = m;
      relative_to[h] = m == kMinusInfinity ? 0.f : base(h, m);
      factor[h] = rescale(h, before);
    }
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const int h = r / 2 % 2;
      // One rounding, of the difference: the bound on a weight rests on it.
      s[r] = ptx::exp2_approx(fmaf(s[r], scale[h], -relative_to[h]));
      added[h] = r == 2 * h ? s[r] : added[h] + s[r];
    }
    // A tile at a time: a long sum would round each of its weights to a grid of its own size.
#pragma unroll
    for (int h = 0; h < 2; ++h) sum[h] = sum[h] * factor[h] + added[h];
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
    return sum[h] == 0.f ? kMinusInfinity : (base(h, max[h]) + log2f(sum[h])) * kLn2;
  }
};

// An accumulator of 64 x 16 n as n A operands of 64 x 16: the same elements in the same threads.
template <typename T, int kBlocks>
__device__ __forceinline__ void to_operand(const float (&s)[8 * kBlocks],
                                           uint32_t (&p)[kBlocks][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) p[i / 4][i % 4] = pack_pair<T>(s[2 * i], s[2 * i + 1]);
}

}  // namespace l4k
