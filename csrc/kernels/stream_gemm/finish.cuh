// From the consumers' sums to the result: a few warps take turns at the runs of a share.
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
#include "tile/epilogue.cuh"

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

// How the runs of one row tile become its sums, for one of them. They are added from the end of K to
// its start, whoever is the last: the run at the start, with which a share usually ends, can then add
// up all others while its own products still run.
template <int kTiles>
struct Meeting {
  const StreamSchedule& schedule;
  const StreamWorkspace<kTiles>& workspace;
  StreamRun run;
  uint64_t nonce;
  int own, first = -1, runs = 0;  // slots of this run and of the one at the start of K

  __device__ __forceinline__ Meeting(const StreamSchedule& schedule,
                                     const StreamWorkspace<kTiles>& workspace, const StreamRun& run,
                                     uint64_t nonce)
      : schedule(schedule), workspace(workspace), run(run), nonce(nonce) {
    own = schedule.slot(run.item, run.tile, blockIdx.x);
    schedule.for_each_run(run.item, run.tile, [&](int slot) {
      first = slot;
      ++runs;
    });
  }

  // Whether all others have come.
  __device__ __forceinline__ bool is_last() const {
    return for_warp(threadIdx.x % 32 == 0 && l4k::is_last(counter(), nonce, runs));
  }

  // Leaves the sums to the others; true if they had all come meanwhile.
  __device__ __forceinline__ bool leave(const float4 (&sums)[kTiles]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) __stcg(workspace.at(own, j), sums[j]);
    __syncwarp();
    return for_warp(threadIdx.x % 32 == 0 && arrive_last(counter(), nonce, runs));
  }

  // All sums in their order; this run's are `own_sums`.
  __device__ __forceinline__ void add_all(float4 (&total)[kTiles],
                                          const float4 (&own_sums)[kTiles]) const {
    schedule.for_each_run(run.item, run.tile, [&](int slot) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
        add(total[j], slot == own ? own_sums[j] : __ldcg(workspace.at(slot, j)));
    });
  }

 private:
  // What lane 0 found, and what it acquired.
  static __device__ __forceinline__ bool for_warp(bool last) {
    last = __shfl_sync(0xffffffff, last, 0);
    __syncwarp();
    return last;
  }
  __device__ __forceinline__ unsigned long long* counter() const {
    return workspace.counters + first;
  }
};

__device__ __forceinline__ float load_bf16(const void* base, int64_t index) {
  return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[index]);
}

// One lane's results of a row tile and what is applied to them, loaded while the products still run.
template <typename Weights, int kTiles>
struct StreamResults {
  const Epilogue& epilogue;
  int rows;           // of the item
  int columns, step;  // of D: a token's two results are `step` columns apart; 0: there is one
  int64_t index;      // of the lane's first result in D
  bool both;          // N does not end between the lane's two rows
  float factor[kTiles][2], channel_factor[2] = {Weights::kFactors[0], Weights::kFactors[1]};
  float bias[2] = {}, residual[kTiles][2][2] = {};

  __device__ __forceinline__ StreamResults(const StreamGemmParams& p, const StreamItem& item,
                                           int tile)
      : epilogue(p.epilogue), rows(item.rows) {
    const int lane = threadIdx.x % 32, channel = 16 * tile + lane / 4;
    const bool swiglu = epilogue.activation == Activation::kSwiglu;
    const int column = swiglu ? 8 * tile + lane / 4 : channel;
    columns = swiglu ? p.n / 2 : p.n;
    step = swiglu ? 0 : 8;
    both = Weights::kTiled || channel + 8 < p.n;
    const GemmScales scales = Weights::kTiled ? GemmScales{} : p.scales;
    const float* factors = channel_factors(scales, item.expert, p.n);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (h == 1 && !both) break;
      if (factors != nullptr) channel_factor[h] *= factors[channel + 8 * h];
      if (epilogue.bias != nullptr) bias[h] = load_bf16(epilogue.bias, channel + 8 * h);
    }
#pragma unroll
    for (int t = 0; t < 2 * kTiles; ++t) {
      const int64_t row = item.row + token(t / 2, t % 2);
      if (t == 0) index = row * columns + column;
      if (!valid(t / 2, t % 2)) continue;
      factor[t / 2][t % 2] = row_factor(epilogue, scales, row, item.expert);
      if (epilogue.residual == nullptr) continue;
      const int64_t first = row * epilogue.residual_stride + column;
      residual[t / 2][t % 2][0] = load_bf16(epilogue.residual, first);
      if (both) residual[t / 2][t % 2][1] = load_bf16(epilogue.residual, first + step);
    }
  }

  // Of the item's, the i-th of a tile's two that this lane holds.
  __device__ __forceinline__ int token(int tile, int i) const {
    return 8 * tile + 2 * (threadIdx.x % 4) + i;
  }
  __device__ __forceinline__ bool valid(int tile, int i) const { return token(tile, i) < rows; }

  __device__ __forceinline__ void store(int64_t at, float value) const {
    if (epilogue.out_float32) static_cast<float*>(epilogue.d)[at] = value;
    else static_cast<__nv_bfloat16*>(epilogue.d)[at] = __float2bfloat16_rn(value);
  }

  __device__ __forceinline__ void finish(const float4 (&sums)[kTiles]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const float values[2][2] = {{sums[j].x, sums[j].z}, {sums[j].y, sums[j].w}};  // [token][row]
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!valid(j, i)) continue;
        const int64_t at = index + int64_t{8 * j + i} * columns;
        float low = values[i][0] * (channel_factor[0] * factor[j][i]) + bias[0];
        float high = values[i][1] * (channel_factor[1] * factor[j][i]) + bias[1];
        if (step == 0) {
          store(at, silu(low) * high + residual[j][i][0]);
          continue;
        }
        if (epilogue.activation == Activation::kGelu) {
          low = gelu(low);
          high = gelu(high);
        }
        store(at, low + residual[j][i][0]);
        if (both) store(at + step, high + residual[j][i][1]);
      }
    }
  }
};

// The consumers' sums of a run, added up warp by warp.
template <typename Weights, int kTiles>
__device__ __forceinline__ void add_warps(StreamSmem<Weights, kTiles>& smem, int finisher,
                                          uint32_t phase, float4 (&sums)[kTiles]) {
  const int lane = threadIdx.x % 32;
  ptx::mbarrier_wait(&smem.sums_full[finisher], phase);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    sums[j] = smem.sums[finisher][0][j][lane];
#pragma unroll
    for (int warp = 1; warp < kStreamConsumers; ++warp)
      add(sums[j], smem.sums[finisher][warp][j][lane]);
  }
  __syncwarp();
  if (lane == 0) ptx::mbarrier_arrive(&smem.sums_empty[finisher]);
}

template <typename Weights, int kTiles>
__device__ __forceinline__ void finish_run(StreamSmem<Weights, kTiles>& smem,
                                           const StreamGemmParams& p,
                                           const StreamSchedule& schedule,
                                           const StreamWorkspace<kTiles>& workspace,
                                           const StreamRun& run, int finisher, uint32_t phase) {
  const StreamResults<Weights, kTiles> results(p, schedule.items[run.item], run.tile);
  float4 sums[kTiles];
  if (schedule.whole(run)) {
    add_warps(smem, finisher, phase, sums);
    return results.finish(sums);
  }
  const Meeting<kTiles> meeting(schedule, workspace, run, p.nonce);
  float4 total[kTiles] = {}, none[kTiles] = {};
  if (meeting.own == meeting.first && meeting.is_last()) {
    meeting.add_all(total, none);
    add_warps(smem, finisher, phase, sums);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) add(total[j], sums[j]);
  } else {
    add_warps(smem, finisher, phase, sums);
    if (!meeting.is_last() && !meeting.leave(sums)) return;
    meeting.add_all(total, sums);
  }
  results.finish(total);
}

// Every second run of the share, or every fourth.
template <typename Weights, int kTiles>
__device__ __forceinline__ void finish_runs(StreamSmem<Weights, kTiles>& smem,
                                            const StreamGemmParams& p, int slots, int finisher) {
  const StreamSchedule schedule = smem.schedule();
  const int end = schedule.shares.first(blockIdx.x + 1);
  const StreamWorkspace<kTiles> workspace(p.workspace, slots);
  StreamRun run = schedule.first(blockIdx.x);
  uint32_t phase = 0;
  for (int index = 0;; ++index) {
    if (index % smem.kFinishers == finisher) {
      finish_run(smem, p, schedule, workspace, run, finisher, phase);
      phase ^= 1;
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
