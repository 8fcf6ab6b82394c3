// normed = RMSNorm(x), logits = normed @ router_weight^T, and what routing makes of them.
//
//   normalise   every CTA adds up the squares of its 8 tokens' whole rows, and normalises its slices of
//               640 columns; those of the first expert group write them
//   multiply    16 experts by 8 tokens at a time, 64 columns of the slice a warp; the warps' sums meet
//               in shared memory, and the slice's partial logits go to the workspace
//   choose      a tile's last CTA to arrive adds up the slices in order and chooses for its tokens
//   rank        the last of those places all tokens
//
// Few tokens have a CTA for each slice, many one that goes through them. Slices depend on D alone, so a
// token's logits have the same bits at any place of any batch. Nobody waits for another CTA. See
// docs/kernels/moe_router.md.
#pragma once
#include "kernels/moe_router/moe_router.h"
#include "kernels/moe_router/plan.h"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "tile/arrive.cuh"
#include "tile/norm.cuh"
#include "tile/route.cuh"

namespace l4k {

constexpr int kRouterSliceVectors = kRouterColumns / kVector;
// 64 bytes more than a row: the four lanes of a token and those of the next read different banks.
constexpr int kRouterPitch = kRouterColumns + 4 * kVector;
constexpr int kRouterOwn = kRouterTileTokens * kRouterSliceVectors / kRouterThreads;  // vectors
constexpr int kRouterSums = kRouterTileExperts * kRouterTileTokens;

static_assert(kRouterThreads >= kRouteMaxExperts && kRouterWarps >= kRouterTileTokens);

struct __align__(16) RouterSmem {
  __nv_bfloat16 rows[kRouterTileTokens][kRouterPitch];  // the slice, normalised
  float squares[kRouterTileTokens][32];                 // sums of the warps of rms_norm
  float factors[kRouterTileTokens];                     // of the norm
  union {
    float sums[2][kRouterWarps][kRouterSums];  // expert tiles take turns
    RouteSmem<kRouterThreads> route;           // once all have been multiplied
  };
  bool last;  // this CTA has arrived last
};

// What this CTA of the grid [slice CTAs, groups, token tiles] has of the work, a slice at a time.
struct RouterPart {
  int slice, first_column, columns;  // of D; no columns past the last slice
  int first_tile, end_tile;          // of experts
  int first_token, tokens;

  __device__ __forceinline__ RouterPart(const MoeRouterParams& params, const RouterPlan& plan)
      : first_tile(blockIdx.y * plan.group_tiles),
        end_tile(min(first_tile + plan.group_tiles, plan.expert_tiles)),
        first_token(blockIdx.z * kRouterTileTokens),
        tokens(min(static_cast<int>(params.routing.tokens) - first_token, kRouterTileTokens)) {
    take(params, blockIdx.x);
  }

  __device__ __forceinline__ void take(const MoeRouterParams& params, int number) {
    slice = number;
    first_column = number * kRouterColumns;
    columns = max(min(params.width - first_column, kRouterColumns), 0);
  }
  __device__ __forceinline__ RouterPart next(const MoeRouterParams& params) const {
    RouterPart part = *this;
    part.take(params, slice + gridDim.x);
    return part;
  }
};

__device__ __forceinline__ const __nv_bfloat16* expert_row(const MoeRouterParams& params,
                                                           int expert) {
  return static_cast<const __nv_bfloat16*>(params.router_weight) + int64_t{expert} * params.width;
}

__device__ __forceinline__ const __nv_bfloat16* token_row(const MoeRouterParams& params,
                                                          int token) {
  return static_cast<const __nv_bfloat16*>(params.x) + token * params.x_stride;
}

// The weights of this CTA go to L2 while the previous kernel still runs: coherent, so harmless even
// where they are its result.
__device__ __forceinline__ void prefetch_weights(const MoeRouterParams& params,
                                                 const RouterPart& part) {
  const int expert = part.first_tile * kRouterTileExperts + threadIdx.x;
  const int columns = gridDim.x == 1 ? params.width : part.columns;
  const uint32_t bytes = columns * sizeof(__nv_bfloat16);
  if (blockIdx.z != 0) return;  // others ask for the same
  if (expert < min(part.end_tile * kRouterTileExperts, params.routing.num_experts))
    ptx::bulk_prefetch(expert_row(params, expert) + part.first_column, bytes);
  if (blockIdx.y == 0 && threadIdx.x == kRouterThreads - 1)
    ptx::bulk_prefetch(static_cast<const __nv_bfloat16*>(params.norm_weight) + part.first_column,
                       bytes);
}

// What a warp multiplies of an expert tile: rows lane / 4 and lane / 4 + 8, twice 32 columns, of which
// a lane holds 8. Rows of weights and tokens give their columns to the four lanes of their number
// alike, so they come in the same order from both.
struct RouterWeights {
  uint4 rows[2][2];  // [step][half]

  // Zeros past the last expert and the end of the slice's columns.
  __device__ __forceinline__ RouterWeights(const MoeRouterParams& params, int first_column,
                                           int columns, int tile) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int expert = tile * kRouterTileExperts + lane / 4 + i % 2 * 8;
      const int column = threadIdx.x / 32 * 64 + i / 2 * 32 + lane % 4 * kVector;
      rows[i / 2][i % 2] = uint4{};
      if (expert < params.routing.num_experts && column < columns)
        rows[i / 2][i % 2] =
            ptx::load_streaming(expert_row(params, expert) + first_column + column);
    }
  }
};

// Sums of squares of the tile's rows as a CTA of rms_norm adds them up, whose warp `norm_warp` is here:
// normalised rows have the bits that it gives them. Four tokens' vectors are in flight at a time.
__device__ __forceinline__ void sum_squares(const MoeRouterParams& params, const RouterPart& part,
                                            int norm_warp, RouterSmem& smem) {
  constexpr int kRows = 4;
  const int vectors = params.width / kVector, threads = norm_threads(vectors);
  const int first_vector = norm_warp * 32 + threadIdx.x % 32;
#pragma unroll 1
  for (int first = 0; first < part.tokens; first += kRows) {
    uint4 raw[kRows][kNormVectors];
#pragma unroll
    for (int i = 0; i < kRows * kNormVectors; ++i) {
      const int token = first + i / kNormVectors, v = first_vector + i % kNormVectors * threads;
      uint4& own = raw[i / kNormVectors][i % kNormVectors];
      own = uint4{};
      if (token < part.tokens && v < vectors)
        own = ptx::load_streaming(token_row(params, part.first_token + token) + v * kVector);
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (first + row >= part.tokens) break;
      float sum = 0.f;
#pragma unroll
      for (const uint4& own : raw[row]) add_squares(own, sum);
      sum = warp_sum(sum);
      if (threadIdx.x % 32 == 0) smem.squares[first + row][norm_warp] = sum;
    }
  }
}

// rsqrt(mean(x^2) + eps) of each token of the tile into smem.factors.
__device__ __forceinline__ void norm_factors(const MoeRouterParams& params, const RouterPart& part,
                                             RouterSmem& smem) {
  const int warps = norm_threads(params.width / kVector) / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int norm_warp = warp; norm_warp < warps; norm_warp += kRouterWarps)
    sum_squares(params, part, norm_warp, smem);
  __syncthreads();
  if (warp < part.tokens) {
    const float sum = warp_sum(lane < warps ? smem.squares[warp][lane] : 0.f);
    if (lane == 0) smem.factors[warp] = rsqrtf(sum / params.width + params.eps);
  }
  __syncthreads();
}

// The thread's vectors of the slice: the same columns of several tokens and of the norm's weights.
struct RouterColumns {
  uint4 own[kRouterOwn], weight;

  // Zeros where there is no token or no column.
  __device__ __forceinline__ RouterColumns(const MoeRouterParams& params, const RouterPart& part)
      : weight{} {
    const int column = first_column(), first = first_token();
    const bool inside = column < part.columns;
#pragma unroll
    for (int u = 0; u < kRouterOwn; ++u) {
      const int token = first + u * kStep;
      own[u] = uint4{};
      if (inside && token < part.tokens)
        own[u] = ptx::load_streaming(token_row(params, part.first_token + token) +
                                     part.first_column + column);
    }
    if (inside)
      weight = ptx::load_streaming(static_cast<const __nv_bfloat16*>(params.norm_weight) +
                                   part.first_column + column);
  }

  // Into smem.rows, normalised, zeros as above. The first expert group's are results.
  __device__ __forceinline__ void normalise_rows(const MoeRouterParams& params,
                                                 const RouterPart& part, RouterSmem& smem) const {
    const int column = first_column(), first = first_token();
#pragma unroll
    for (int u = 0; u < kRouterOwn; ++u) {
      const int token = first + u * kStep;
      uint4 y{};
      if (column < part.columns && token < part.tokens) {
        y = normalise(own[u], smem.factors[token], weight);
        if (blockIdx.y == 0)
          ptx::store_streaming(static_cast<__nv_bfloat16*>(params.normed) +
                                   int64_t{part.first_token + token} * params.width +
                                   part.first_column + column,
                               y);
      }
      *reinterpret_cast<uint4*>(&smem.rows[token][column]) = y;
    }
    __syncthreads();
  }

 private:
  static constexpr int kStep = kRouterThreads / kRouterSliceVectors;  // tokens apart

  static __device__ __forceinline__ int first_column() {
    return threadIdx.x % kRouterSliceVectors * kVector;
  }
  static __device__ __forceinline__ int first_token() { return threadIdx.x / kRouterSliceVectors; }
};

// The products of one expert tile by this warp, left in shared memory as the tensor core leaves them.
__device__ __forceinline__ void multiply_tile(const RouterWeights& weights,
                                              const uint4 (&tokens)[2], float* sums) {
  float d[4] = {};
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const uint4 low = weights.rows[step][0], high = weights.rows[step][1], own = tokens[step];
    ptx::mma_m16n8k16<__nv_bfloat16>(d, {low.x, high.x, low.y, high.y}, own.x, own.y);
    ptx::mma_m16n8k16<__nv_bfloat16>(d, {low.z, high.z, low.w, high.w}, own.z, own.w);
  }
  ptx::store_shared(sums + threadIdx.x % 32 * 4, d[0], d[1], d[2], d[3]);
}

// Logits of the slices, [slice, T, padded experts], as choose() takes their sum.
struct PartialLogits {
  float* partials;
  int64_t slice_stride;
  int slices, padded_experts, num_experts;

  __device__ __forceinline__ PartialLogits(const MoeRouterParams& params, const RouterPlan& plan)
      : partials(static_cast<float*>(params.workspace) + plan.counter_words()),
        slice_stride(params.routing.tokens * plan.padded_experts()),
        slices(plan.slices),
        padded_experts(plan.padded_experts()),
        num_experts(params.routing.num_experts) {}

  __device__ __forceinline__ float* at(int slice, int token, int expert) const {
    return partials + slice * slice_stride + token * padded_experts + expert;
  }

  __device__ __forceinline__ void load(int token, int first, float (&v)[kRouteLogits]) const {
    if (first >= num_experts) return;
#pragma unroll 8
    for (int slice = 0; slice < slices; ++slice) {
      const float4* from = reinterpret_cast<const float4*>(at(slice, token, first));
      const float4 a = __ldcg(from), b = __ldcg(from + 1);
      const float more[] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < kRouteLogits; ++i) v[i] += more[i];
    }
  }
};

// The slice's logits for this CTA's experts and tokens. `weights` are those of the first tile, and then
// of the first tile of the slice `after` it.
__device__ __forceinline__ void multiply(const MoeRouterParams& params, const RouterPart& part,
                                         const RouterPart& after, RouterWeights& weights,
                                         const PartialLogits& logits, RouterSmem& smem) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint4 tokens[2];
#pragma unroll
  for (int step = 0; step < 2; ++step)
    tokens[step] = *reinterpret_cast<const uint4*>(
        &smem.rows[lane / 4][warp * 64 + step * 32 + lane % 4 * kVector]);
  // Sum i is register i % 4 of lane i / 4: this row and column of the product.
  const int i = threadIdx.x, expert = i / 16 + i % 4 / 2 * 8, token = i / 4 % 4 * 2 + i % 2;
#pragma unroll 1
  for (int tile = part.first_tile; tile < part.end_tile; ++tile) {
    const bool more = tile + 1 < part.end_tile;
    const RouterWeights next(params, more ? part.first_column : after.first_column,
                             more ? part.columns : after.columns,
                             more ? tile + 1 : part.first_tile);
    auto& sums = smem.sums[tile % 2];
    multiply_tile(weights, tokens, sums[warp]);
    __syncthreads();  // so the other buffer has been read, too, and all tokens
    if (i < kRouterSums && token < part.tokens) {
      float sum = 0.f;
#pragma unroll
      for (const float (&own)[kRouterSums] : sums) sum += own[i];
      __stcg(logits.at(part.slice, part.first_token + token, tile * kRouterTileExperts + expert),
             sum);
    }
    weights = next;
  }
}

// True in the last of `expected` CTAs, which sees what the others have written before.
__device__ __forceinline__ bool all_arrived(const MoeRouterParams& params, int counter,
                                            int expected, RouterSmem& smem) {
  __syncthreads();  // all that this CTA has written, before its arrival
  if (expected == 1) return true;
  if (threadIdx.x == 0)
    smem.last = arrive_last(static_cast<unsigned long long*>(params.workspace) + counter,
                            params.nonce, expected);
  __syncthreads();
  return smem.last;
}

__global__ void __launch_bounds__(kRouterThreads)
    moe_router_kernel(MoeRouterParams params, RouterPlan plan) {
  __shared__ RouterSmem smem;
  RouterPart part(params, plan);
  ptx::grid_launch_dependents();
  prefetch_weights(params, part);
  ptx::grid_dependency_wait();

  const PartialLogits logits(params, plan);
  RouterWeights weights(params, part.first_column, part.columns, part.first_tile);
  RouterColumns columns(params, part);
  norm_factors(params, part, smem);
#pragma unroll 1
  while (part.columns > 0) {
    const RouterPart after = part.next(params);
    columns.normalise_rows(params, part, smem);
    columns = RouterColumns(params, after);
    multiply(params, part, after, weights, logits, smem);
    part = after;
  }
  if (!all_arrived(params, 1 + blockIdx.z, plan.tile_ctas(), smem)) return;
  const Routing& routing = params.routing;
  choose<kRouterThreads>(routing, part.first_token, part.first_token + part.tokens, logits,
                         nullptr);
  if (!all_arrived(params, 0, plan.token_tiles, smem)) return;
  rank<true>(routing, 0, static_cast<int>(routing.tokens) * routing.top_k, smem.route);
}

}  // namespace l4k
