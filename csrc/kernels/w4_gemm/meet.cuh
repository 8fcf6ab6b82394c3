// Sums of a tile whose K blocks several CTAs hold. Nobody waits: all but the last to come leave their
// sums in the workspace, and the last adds them up in the order of K.
#pragma once
#include "kernels/w4_gemm/smem.cuh"
#include "kernels/w4_gemm/w4_gemm.h"
#include "ptx/sync.cuh"
#include "tile/arrive.cuh"

namespace l4k {

// The workspace: a counter for each tile that may be split, at most two of a CTA, then two slots a CTA
// of float4 [vectors][consumer thread].
struct W4Workspace {
  unsigned long long* counters;
  float4* slots;

  __device__ __forceinline__ W4Workspace(const W4GemmParams& p, int ctas)
      : counters(static_cast<unsigned long long*>(p.workspace)),
        slots(reinterpret_cast<float4*>(counters + W4Schedule::most_counters(ctas))) {}
};

L4K_HD constexpr int64_t w4_workspace_words(const W4GemmConfig& c, int ctas) {
  return 2 * W4Schedule::most_counters(ctas) + int64_t{2} * ctas * c.sums() * kW4Consumers;
}

// Adds what a CTA left, by both consumer warpgroups.
template <int kSums>
__device__ __forceinline__ void add(float (&sums)[kSums], const float4* from) {
  constexpr int kVectors = 4;  // in flight
#pragma unroll
  for (int first = 0; first < kSums; first += 4 * kVectors) {
    float4 part[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) part[v] = __ldcg(from + (first / 4 + v) * kW4Consumers);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      sums[first + 4 * v] += part[v].x;
      sums[first + 4 * v + 1] += part[v].y;
      sums[first + 4 * v + 2] += part[v].z;
      sums[first + 4 * v + 3] += part[v].w;
    }
  }
}

// True if `sums` are now those of the whole tile, and this CTA finishes it. Of two CTAs the last need not
// store, since a sum of two has no order.
template <int I, int kSums>
__device__ __forceinline__ bool meet(float (&sums)[kSums], W4GemmSmem<I>& smem,
                                     const W4GemmParams& p, int tile) {
  const W4Schedule& schedule = smem.turn.schedule;
  const W4Workspace workspace(p, gridDim.x);
  const W4Holders holders = schedule.holders(tile);
  unsigned long long* counter = workspace.counters + schedule.counter(tile);
  const auto slot = [&](int cta) {
    return workspace.slots + int64_t{holders.slot(cta)} * (kSums / 4) * kW4Consumers + threadIdx.x -
           128;
  };
  const auto ask = [&](auto arrive) {
    ptx::named_barrier_sync(kW4BarrierConsumers, kW4Consumers);
    if (threadIdx.x == 128) smem.is_last = arrive(counter, p.nonce, holders.count());
    ptx::named_barrier_sync(kW4BarrierConsumers, kW4Consumers);
    return smem.is_last;
  };
  const int cta = blockIdx.x;
  const bool pair = holders.count() == 2;
  if (!pair || !ask(is_last)) {
    float4* to = slot(cta);
#pragma unroll
    for (int r = 0; r < kSums; r += 4)
      __stcg(to + r / 4 * kW4Consumers, float4{sums[r], sums[r + 1], sums[r + 2], sums[r + 3]});
    if (!ask(arrive_last)) return false;
    if (!pair) {
#pragma unroll
      for (int r = 0; r < kSums; ++r) sums[r] = 0.f;
    }
  }
#pragma unroll 1
  for (int holder = holders.first; holder <= holders.last; ++holder)
    if (!pair || holder != cta) add(sums, slot(holder));
  return true;
}

}  // namespace l4k
