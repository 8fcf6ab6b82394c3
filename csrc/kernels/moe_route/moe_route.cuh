// ids[t] = the k largest of logits[t], weights = sigmoid, and a stable counting sort of the T * k
// choices by expert, in the steps of tile/route.cuh.
//
// Up to 64 tokens one CTA does all three. Beyond, choose is one launch, a tile of tokens a CTA, and
// offset + rank another (each CTA adds up the counts of all tiles, 8 KB for 16 experts, instead of
// waiting on its neighbours).
// See docs/kernels/moe_route.md.
#pragma once
#include <cuda_bf16.h>

#include "kernels/moe_route/moe_route.h"
#include "kernels/moe_route/plan.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/route.cuh"
#include "tile/vector.cuh"

namespace l4k {

static_assert(kRouteLogits == kVector);

__device__ __forceinline__ void load_logits(const float* row, float (&v)[kRouteLogits]) {
  const uint4 a = ptx::load_streaming(row), b = ptx::load_streaming(row + 4);
  const uint32_t words[] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < kRouteLogits; ++i) v[i] = __uint_as_float(words[i]);
}

__device__ __forceinline__ void load_logits(const __nv_bfloat16* row, float (&v)[kRouteLogits]) {
  unpack(ptx::load_streaming(row), v);
}

// Rows of logits in memory, as choose() takes them.
template <typename T>
struct LogitRows {
  const T* rows;
  int64_t stride;
  int num_experts;
  bool vectors;  // rows are read in 16-byte vectors

  __device__ __forceinline__ explicit LogitRows(const MoeRouteParams& params)
      : rows(static_cast<const T*>(params.logits)),
        stride(params.logits_stride),
        num_experts(params.routing.num_experts),
        vectors(num_experts % kRouteLogits == 0 && stride * sizeof(T) % 16 == 0 &&
                reinterpret_cast<uintptr_t>(rows) % 16 == 0) {}

  __device__ __forceinline__ void load(int token, int first, float (&v)[kRouteLogits]) const {
    const T* row = rows + token * stride;
    if (vectors && first < num_experts) {
      load_logits(row + first, v);
    } else {
#pragma unroll
      for (int i = 0; i < kRouteLogits; ++i)
        if (first + i < num_experts) v[i] = static_cast<float>(row[first + i]);
    }
  }
};

// All three steps, at most kRouteOneLaunchTokens tokens, one CTA.
template <typename T>
__global__ void __launch_bounds__(kRouteThreads, 1) moe_route_small_kernel(MoeRouteParams params) {
  __shared__ RouteSmem<kRouteThreads> smem;
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  route_all(params.routing, LogitRows<T>(params), smem);
}

// First launch: tile blockIdx.x chooses, and leaves its counts in the workspace.
template <typename T>
__global__ void __launch_bounds__(kRouteThreads, 1)
    moe_route_choose_kernel(MoeRouteParams params, RoutePlan plan) {
  __shared__ int counts[kRouteMaxExperts];
  if (threadIdx.x < kRouteMaxExperts) counts[threadIdx.x] = 0;
  __syncthreads();
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  const int begin = blockIdx.x * plan.tile_tokens;
  const int end = min(begin + plan.tile_tokens, static_cast<int>(params.routing.tokens));
  choose<kRouteThreads>(params.routing, begin, end, LogitRows<T>(params), counts);
  __syncthreads();
  if (threadIdx.x < params.routing.num_experts)
    params.counts[blockIdx.x * params.routing.num_experts + threadIdx.x] = counts[threadIdx.x];
}

// Second launch: offsets from the counts of all tiles, then the rows of this tile's choices.
__global__ void __launch_bounds__(kRouteThreads, 1)
    moe_route_rank_kernel(MoeRouteParams params, RoutePlan plan) {
  __shared__ RouteSmem<kRouteThreads> smem;
  if (threadIdx.x < kRouteMaxExperts) smem.totals[threadIdx.x] = smem.starts[threadIdx.x] = 0;
  __syncthreads();
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  const int columns = round_up(params.routing.num_experts, 32);
  const int expert = threadIdx.x % columns, slice = threadIdx.x / columns;
  const int slices = kRouteThreads / columns;
  if (expert < params.routing.num_experts && slice < slices) {
    int all = 0, before = 0;
#pragma unroll 8
    for (int tile = slice; tile < plan.tiles; tile += slices) {
      const int count = params.counts[tile * params.routing.num_experts + expert];
      all += count;
      if (tile < static_cast<int>(blockIdx.x)) before += count;
    }
    atomicAdd(&smem.totals[expert], all);
    atomicAdd(&smem.starts[expert], before);
  }
  __syncthreads();
  if (threadIdx.x < 32) add_offsets(params.routing, smem, blockIdx.x == 0);
  const int begin = blockIdx.x * plan.tile_tokens;
  const int end = min(begin + plan.tile_tokens, static_cast<int>(params.routing.tokens));
  rank<false>(params.routing, begin * params.routing.top_k, end * params.routing.top_k, smem);
}

}  // namespace l4k
