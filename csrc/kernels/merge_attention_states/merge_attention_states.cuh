// A row (token and head) is half a warp: eight values per lane, 16-byte loads. Lane i weighs part
// i, i + 16, ...; then every lane adds up its eight columns in the order of the parts, several
// loads in flight. A part without keys has weight zero and is not read: its values may be anything.
// The weight of any other is at least the smallest float, so that a NaN in it is not lost.
// See docs/kernels/merge_attention_states.md.
#pragma once
#include "kernels/merge_attention_states/merge_attention_states.h"
#include "ptx/arithmetic.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/base.h"
#include "tile/reduce.cuh"
#include "tile/vector.cuh"

namespace l4k {

constexpr float kSmallestFloat = 0x1p-149f;
constexpr int kMergeThreads = 256;
constexpr int kMergeLanes = 128 / kVector;  // per row
constexpr int kMergeRows = kMergeThreads / kMergeLanes;

__global__ void __launch_bounds__(kMergeThreads)
    merge_attention_states_kernel(MergeAttentionStatesParams p) {
  constexpr float kLog2e = 1.4426950408889634f;
  const int lane = threadIdx.x % kMergeLanes;
  const int64_t row = int64_t{blockIdx.x} * kMergeRows + threadIdx.x / kMergeLanes;
  const bool exists = row < p.rows;
  // Rows are [B, S, H], their lse [B, H, S].
  const int64_t token = row / p.heads, head = row - token * p.heads, batch = token / p.tokens;
  const int64_t at = (batch * p.heads + head) * p.tokens + token - batch * p.tokens;

  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  const auto lse_of = [&](int part) {
    return exists && part < p.parts ? p.lses[part * p.rows + at] : kMinusInfinity;
  };
  float maximum = kMinusInfinity;
  for (int part = lane; part < p.parts; part += kMergeLanes) maximum = fmaxf(maximum, lse_of(part));
  maximum = warp_max<kMergeLanes>(maximum);
  const float base = maximum == kMinusInfinity ? 0.f : maximum;

  float sum[kVector] = {}, total = 0.f;
  for (int first = 0; first < p.parts; first += kMergeLanes) {
    const float lse = lse_of(first + lane);
    float own = ptx::exp2_approx((lse - base) * kLog2e);
    if (own == 0.f && lse != kMinusInfinity) own = kSmallestFloat;
    total += own;
    const int count = min(p.parts - first, kMergeLanes);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float weight = __shfl_sync(0xffffffff, own, i, kMergeLanes);
      uint4 raw{};
      if (weight != 0.f)
        raw = ptx::load_streaming(static_cast<const uint4*>(p.outs) +
                                  ((first + i) * p.rows + row) * kMergeLanes + lane);
      float v[kVector];
      unpack(raw, v);
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum[j] += weight * v[j];
    }
  }
  total = warp_sum<kMergeLanes>(total);
  if (!exists) return;
  const float factor = total == 0.f ? 0.f : 1.f / total;
#pragma unroll
  for (float& value : sum) value *= factor;
  ptx::store_streaming(static_cast<uint4*>(p.out) + row * kMergeLanes + lane, pack(sum));
  if (lane == 0) p.lse[at] = total == 0.f ? kMinusInfinity : base + logf(total);
}

}  // namespace l4k
