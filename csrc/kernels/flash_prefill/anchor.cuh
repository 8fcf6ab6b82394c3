// Sums over very many keys. A tensor core cuts what it adds where float32 addition would round, so a
// sum that stays in its accumulator shrinks a little with every step. After kAnchorTiles tiles of
// keys a thread therefore adds its sums, rounded, to those before, which lie in a workspace: the
// registers have no room for both. Only the thread itself reads and writes its place.
#pragma once
#include "kernels/flash_prefill/schedule.h"
#include "kernels/flash_prefill/softmax.cuh"

namespace l4k {

struct AnchoredSums {
  float4* place;  // of this thread: kVectors vectors, kThreads apart

  static constexpr int kThreads = 256, kVectors = 17;     // 64 of O; maxima and sums of two rows
  static constexpr int kWords = kThreads * kVectors * 4;  // of a CTA

  // The sums so far are added to those of the range of keys that has just ended.
  template <int kShift>
  __device__ __forceinline__ void add_to(float (&o)[64], OnlineSoftmax<kShift>& softmax) const {
    const float4 state = place[16 * kThreads];
    const float factor[2] = {softmax.rescale(0, state.x), softmax.rescale(1, state.y)};
    softmax.sum[0] += state.z * factor[0];
    softmax.sum[1] += state.w * factor[1];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float4 earlier = place[i * kThreads];
      o[4 * i] += earlier.x * factor[0];
      o[4 * i + 1] += earlier.y * factor[0];
      o[4 * i + 2] += earlier.z * factor[1];
      o[4 * i + 3] += earlier.w * factor[1];
    }
  }

  // The sums move to the workspace; the next range begins at zero.
  template <int kShift>
  __device__ __forceinline__ void put_away(float (&o)[64], OnlineSoftmax<kShift>& softmax) const {
#pragma unroll
    for (int i = 0; i < 16; ++i)
      place[i * kThreads] = {o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]};
    place[16 * kThreads] = {softmax.max[0], softmax.max[1], softmax.sum[0], softmax.sum[1]};
#pragma unroll
    for (int r = 0; r < 64; ++r) o[r] = 0.f;
    softmax.sum[0] = softmax.sum[1] = 0.f;
  }
};

}  // namespace l4k
