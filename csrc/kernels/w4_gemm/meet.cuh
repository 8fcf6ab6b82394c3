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
        slots(reinterpret_cast<float4*>(counters + 2 * ctas)) {}
};

L4K_HD constexpr int64_t w4_workspace_words(const W4GemmConfig& c, int ctas) {
  return int64_t{ctas} * 2 * (2 + int64_t{c.sums()} * kW4Consumers);
}

// By both consumer warpgroups.
template <int I, int kSums>
__device__ __forceinline__ void add_up(float (&sums)[kSums], const W4Schedule& schedule, int tile,
                                       const float4* slots) {
  constexpr int kVectors = 4;
  const int cta = blockIdx.x, thread = threadIdx.x - 128;
  const W4Holders holders = schedule.holders(tile);
#pragma unroll
  for (int first = 0; first < kSums; first += 4 * kVectors) {
    float4 total[kVectors] = {};
#pragma unroll 1
    for (int holder = holders.first; holder <= holders.last; ++holder) {
      const int64_t slot = int64_t{schedule.slot(holder, tile)} * (kSums / 4);
      const float4* from = slots + (slot + first / 4) * kW4Consumers + thread;
      float4 part[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const float* own = sums + first + 4 * v;
        part[v] = holder == cta ? float4{own[0], own[1], own[2], own[3]}
                                : __ldcg(from + v * kW4Consumers);
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        total[v] = {total[v].x + part[v].x, total[v].y + part[v].y, total[v].z + part[v].z,
                    total[v].w + part[v].w};
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float* own = sums + first + 4 * v;
      own[0] = total[v].x, own[1] = total[v].y, own[2] = total[v].z, own[3] = total[v].w;
    }
  }
}

// True if `sums` are now those of the whole tile, and this CTA finishes it.
template <int I, int kSums>
__device__ __forceinline__ bool meet(float (&sums)[kSums], W4GemmSmem<I>& smem,
                                     const W4GemmParams& p, int tile) {
  const W4Schedule& schedule = smem.schedule;
  const W4Workspace workspace(p, gridDim.x);
  const int count = schedule.holders(tile).count();
  unsigned long long* counter = workspace.counters + schedule.counter(tile);
  const auto ask = [&](auto arrive) {
    ptx::named_barrier_sync(kW4BarrierConsumers, kW4Consumers);
    if (threadIdx.x == 128) smem.is_last = arrive(counter, p.nonce, count);
    ptx::named_barrier_sync(kW4BarrierConsumers, kW4Consumers);
    return smem.is_last;
  };
  if (!ask(is_last)) {
    const int64_t slot = int64_t{schedule.slot(blockIdx.x, tile)} * (kSums / 4);
    float4* to = workspace.slots + slot * kW4Consumers + threadIdx.x - 128;
#pragma unroll
    for (int r = 0; r < kSums; r += 4)
      __stcg(to + r / 4 * kW4Consumers, float4{sums[r], sums[r + 1], sums[r + 2], sums[r + 3]});
    if (!ask(arrive_last)) return false;
  }
  add_up<I>(sums, schedule, tile, workspace.slots);
  return true;
}

}  // namespace l4k
