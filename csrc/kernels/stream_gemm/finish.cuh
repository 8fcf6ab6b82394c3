// From the consumers' sums to the result: two warps take turns at the runs of a share.
//
// A lane holds what a tensor-core product leaves it: weight rows g and g + 8 of the tile, tokens 2c and
// 2c + 1 of every eight (g = lane / 4, c = lane % 4). With SwiGLU row g is a gate and row g + 8 the up
// of the same result.
#pragma once
#include <cuda_bf16.h>

#include "kernels/stream_gemm/smem.cuh"
#include "kernels/stream_gemm/stream_gemm.h"
#include "tile/activation.cuh"
#include "tile/arrive.cuh"

namespace l4k {

// Partial sums of runs, and the counters that say how many have come.
template <int kTiles>
struct StreamWorkspace {
  unsigned long long* counters;  // one per slot; a row tile counts at its first run's
  float4* sums;                  // [slot][tile][lane]

  // Words of memory that so many slots need.
  static constexpr int64_t words(int64_t slots) { return slots * (2 + 128 * kTiles); }
  __device__ __forceinline__ StreamWorkspace(void* memory, int slots)
      : counters(static_cast<unsigned long long*>(memory)),
        sums(reinterpret_cast<float4*>(counters + round_up(slots, 2))) {}
  __device__ __forceinline__ float4* at(int slot, int tile) const {
    return sums + (int64_t{slot} * kTiles + tile) * 32 + threadIdx.x % 32;
  }
};

__device__ __forceinline__ void add(float4& sum, const float4& more) {
  sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
}

// The whole sums of the run's row tile, if it is the last of its runs; else they are left for another.
template <int kTiles>
__device__ __forceinline__ bool meet(float4 (&sums)[kTiles], const StreamSchedule& schedule,
                                     const StreamWorkspace<kTiles>& workspace, const StreamRun& run,
                                     uint64_t nonce) {
  const int lane = threadIdx.x % 32, own = schedule.slot(run.item, run.tile, blockIdx.x);
  int first = -1, runs = 0;
  schedule.for_each_run(run.item, run.tile, [&](int slot) {
    if (first < 0) first = slot;
    ++runs;
  });
  unsigned long long* counter = workspace.counters + first;
  bool last = lane == 0 && is_last(counter, nonce, runs);
  last = __shfl_sync(0xffffffff, last, 0);
  if (!last) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) __stcg(workspace.at(own, j), sums[j]);
    __syncwarp();
    last = lane == 0 && arrive_last(counter, nonce, runs);
    last = __shfl_sync(0xffffffff, last, 0);
    if (!last) return false;
  }
  // In the order of K, whoever is the last.
  float4 total[kTiles] = {};
  schedule.for_each_run(run.item, run.tile, [&](int slot) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
      add(total[j], slot == own ? sums[j] : __ldcg(workspace.at(slot, j)));
  });
#pragma unroll
  for (int j = 0; j < kTiles; ++j) sums[j] = total[j];
  return true;
}

__device__ __forceinline__ float load_bf16(const void* base, int64_t index) {
  return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[index]);
}

__device__ __forceinline__ void store_result(const Epilogue& e, int row, int columns, int column,
                                             float value) {
  if (e.residual != nullptr) value += load_bf16(e.residual, row * e.residual_stride + column);
  const int64_t index = int64_t{row} * columns + column;
  if (e.out_float32) static_cast<float*>(e.d)[index] = value;
  else static_cast<__nv_bfloat16*>(e.d)[index] = __float2bfloat16_rn(value);
}

template <typename Weights, int kTiles>
__device__ __forceinline__ void finish(const float4 (&sums)[kTiles], const StreamGemmParams& p,
                                       const StreamItem& item, int tile) {
  const Epilogue& e = p.epilogue;
  const int lane = threadIdx.x % 32, channel = 16 * tile + lane / 4;
  const bool swiglu = e.activation == Activation::kSwiglu;
  float bias[2] = {0.f, 0.f};
  if (e.bias != nullptr) {
    bias[0] = load_bf16(e.bias, channel);
    bias[1] = load_bf16(e.bias, channel + 8);
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const float values[2][2] = {{sums[j].x, sums[j].z}, {sums[j].y, sums[j].w}};  // [token][row]
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = 8 * j + 2 * (lane % 4) + i, row = item.row + token;
      if (token >= item.rows) continue;
      const float factor = e.row_scale != nullptr ? e.row_scale[row] : 1.f;
      float low = values[i][0] * Weights::kFactors[0] * factor + bias[0];
      float high = values[i][1] * Weights::kFactors[1] * factor + bias[1];
      if (swiglu) {
        store_result(e, row, p.n / 2, 8 * tile + lane / 4, silu(low) * high);
        continue;
      }
      if (e.activation == Activation::kGelu) {
        low = gelu(low);
        high = gelu(high);
      }
      store_result(e, row, p.n, channel, low);
      store_result(e, row, p.n, channel + 8, high);
    }
  }
}

// Every second run of the share.
template <typename Weights, int kTiles>
__device__ __forceinline__ void finish_runs(StreamSmem<Weights, kTiles>& smem,
                                            const StreamGemmParams& p, int slots, int finisher) {
  const StreamSchedule schedule = smem.schedule();
  const int lane = threadIdx.x % 32, end = schedule.shares.first(blockIdx.x + 1);
  const StreamWorkspace<kTiles> workspace(p.workspace, slots);
  StreamRun run = schedule.first(blockIdx.x);
  uint32_t phase = 0;
  for (int index = 0;; ++index) {
    if (index % kStreamFinishers == finisher) {
      ptx::mbarrier_wait(&smem.sums_full[finisher], phase);
      float4 sums[kTiles];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        sums[j] = smem.sums[finisher][0][j][lane];
#pragma unroll
        for (int warp = 1; warp < kStreamConsumers; ++warp)
          add(sums[j], smem.sums[finisher][warp][j][lane]);
      }
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(&smem.sums_empty[finisher]);
      phase ^= 1;
      if (schedule.whole(run) || meet(sums, schedule, workspace, run, p.nonce))
        finish<Weights>(sums, p, schedule.items[run.item], run.tile);
    }
    if (run.end >= end) return;
    run = schedule.next(run, end);
  }
}

// Rows that no expert owns come out as zeros. By the warps that finish.
__device__ __forceinline__ void clear_tail(const StreamGemmParams& p, int first_row, int thread,
                                           int threads) {
  const Epilogue& e = p.epilogue;
  const int columns = e.activation == Activation::kSwiglu ? p.n / 2 : p.n;
  const int64_t row_vectors =
      int64_t{columns} * (e.out_float32 ? 4 : 2) / 16;  // 8 columns at least
  auto* vectors = static_cast<uint4*>(e.d);
  for (int64_t i = first_row * row_vectors + thread; i < p.m * row_vectors; i += threads)
    vectors[i] = make_uint4(0, 0, 0, 0);
}

}  // namespace l4k
