// Few tokens: weights stream through every SM once.
//
//   warp 8            warp 9          warps 0 ... 7            warps 10, 11 (to 13)
//   bulk copies   =>  rows of A   =>  products, 2 units a  =>  sums of the 8 warps,
//   of weights                        stage and warp           results
//
// barrier         arrives                          waits      promises
// stages.full[s]  warp 8, and the copies' bytes    consumers  stage s holds weights
// stages.empty[s] a lane of each consumer          warp 8     nobody reads stage s any more
// rows_full       warp 9, and the copies' bytes    consumers  the item's rows of A are there
// rows_empty      a lane of each consumer          warp 9     all have left the item
// sums_full[i]    a lane of each consumer          finisher i all sums of the run are written
// sums_empty[i]   finisher i                       consumers  they have been read
//
// Weights are the 16 rows of a product m16n8k16, tokens its columns. See schedule.h for what a CTA
// multiplies, and docs/kernels/stream_gemm.md for the floor and the sum of issue slots.
#pragma once
#include "kernels/stream_gemm/finish.cuh"
#include "kernels/stream_gemm/load.cuh"
#include "kernels/stream_gemm/row_major.cuh"
#include "kernels/stream_gemm/smem.cuh"
#include "kernels/stream_gemm/weights.cuh"
#include "tile/experts.cuh"

namespace l4k {

// Items and their running totals, by one warp.
template <typename Weights, int kTiles>
__device__ __forceinline__ void list_items(StreamSmem<Weights, kTiles>& smem,
                                           const StreamGemmParams& p, int row_tiles) {
  constexpr int kTokens = 8 * kTiles;
  const StreamRows layout{p.activation_bytes, ceil_div(p.k, Weights::kUnitK), Weights::kRowBytes};
  const int lane = threadIdx.x % 32;
  int rows = 0, items = 0, units = 0, sliced = 0;  // totals before this round
  for (int base = 0; base < p.num_experts; base += 32) {
    const int e = base + lane;
    const ExpertRows own =
        expert_rows(p.expert_offsets, p.num_experts, p.m, e, rows, p.error, Weights::kOffsetsError);
    int count = 0, own_units = 0, own_sliced = 0;
    const int end = e < p.num_experts ? own.end : own.begin;
    for (int row = own.begin; row < end; row += kTokens) {
      const int slices = layout.slices(min(end - row, kTokens));
      count += slices;
      own_units += layout.k_blocks * row_tiles;
      if (slices > 1) own_sliced += slices * row_tiles;
    }
    const int last_item = items + warp_running_sum(count);
    const int last_unit = units + warp_running_sum(own_units);
    const int last_sliced = sliced + warp_running_sum(own_sliced);
    int item = last_item - count, unit = last_unit - own_units, before = last_sliced - own_sliced;
    for (int row = own.begin; row < end; row += kTokens) {
      const int taken = min(end - row, kTokens), slices = layout.slices(taken);
      for (int slice = 0; slice < slices; ++slice) {
        const int first = layout.first_block(slice, slices);
        const int blocks = layout.first_block(slice + 1, slices) - first;
        unit += blocks * row_tiles;
        smem.items[item++] = {e, row, taken, first, blocks, slice, slices, unit, before};
        if (slices > 1) before += row_tiles;
      }
    }
    if (e == p.num_experts - 1) smem.last_row = own.end;
    items = __shfl_sync(0xffffffff, last_item, 31);
    units = __shfl_sync(0xffffffff, last_unit, 31);
    sliced = __shfl_sync(0xffffffff, last_sliced, 31);
  }
  if (lane == 0) {
    smem.num_items = items;
    smem.row_tiles = row_tiles;
    smem.shares = StreamSchedule::shares_of(units, static_cast<int>(gridDim.x));
  }
}

// A consumer warp's view of the rows of one item: addresses for ldmatrix, at the item's first block.
template <typename Weights, int kTiles>
__device__ __forceinline__ void row_addresses(StreamSmem<Weights, kTiles>& smem,
                                              const StreamItem& item, uint32_t (&rows)[kTiles]) {
  const int lane = threadIdx.x % 32;
  const int pitch = StreamRows::pitch(item.blocks, Weights::kRowBytes);
  const uint32_t base = ptx::smem_address(smem.rows()) + lane / 8 * 16;
#pragma unroll
  for (int j = 0; j < kTiles; ++j)  // columns past the last token repeat it and are not looked at
    rows[j] = base + min(8 * j + lane % 8, item.rows - 1) * pitch;
}

// Hands a run's sums to the warp that finishes it; they start from zero again.
template <typename Weights, int kTiles>
__device__ __forceinline__ void hand_over(StreamSmem<Weights, kTiles>& smem,
                                          float (&acc)[kTiles][4], int index) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, place = index % smem.kFinishers;
  ptx::mbarrier_wait(&smem.sums_empty[place], (index / smem.kFinishers & 1) ^ 1);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    ptx::store_shared(&smem.sums[place][warp][j][lane], acc[j][0], acc[j][1], acc[j][2], acc[j][3]);
    acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.f;
  }
  __syncwarp();
  if (lane == 0) ptx::mbarrier_arrive(&smem.sums_full[place]);
}

template <typename Weights, int kTiles>
__device__ __forceinline__ void consume(StreamSmem<Weights, kTiles>& smem,
                                        const StreamGemmParams& p, int begin, int end) {
  const StreamSchedule schedule = smem.schedule();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bytes = Weights::unit_bytes(p);
  Stage<Weights::kStages> stage;
  StreamRun run = schedule.first(blockIdx.x);
  int index = 0, tile_begin = schedule.first_unit(run.item, run.tile);
  uint32_t phase = 0, rows[kTiles];
  float acc[kTiles][4] = {};
  row_addresses(smem, schedule.items[run.item], rows);
  typename Weights::template Factors<kTiles> factors(p, schedule.items[run.item], run.tile);
  ptx::mbarrier_wait(&smem.rows_full, phase);
  const auto next_run = [&] {
    hand_over(smem, acc, index++);
    const int item = run.item;
    run = schedule.next(run, end);
    tile_begin = schedule.first_unit(run.item, run.tile);
    factors = {p, schedule.items[run.item], run.tile};
    if (run.item == item) return;
    if (lane == 0) ptx::mbarrier_arrive(&smem.rows_empty);
    row_addresses(smem, schedule.items[run.item], rows);
    ptx::mbarrier_wait(&smem.rows_full, phase ^= 1);
  };
  // `kUnits` of the run from `unit` on.
  const auto multiply = [&]<int kUnits>(int unit, const char* units) {
    uint32_t at[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) at[j] = rows[j] + (unit - tile_begin) * Weights::kRowBytes;
    Weights::template multiply<kUnits>(acc, units, at, p, factors, unit - tile_begin);
  };
  for (int base = begin; base < end; base += smem.kStageUnits, stage.advance()) {
    smem.stages.wait_full(stage);
    const char* units = smem.ring[stage.index] + warp * Weights::kWarpUnits * bytes;
    const int unit = base + warp * Weights::kWarpUnits;
    if (Weights::kWarpUnits > 1 && unit + Weights::kWarpUnits <= run.end) {
      multiply.template operator()<Weights::kWarpUnits>(unit, units);
    } else {
#pragma unroll 1
      for (int i = 0; i < Weights::kWarpUnits && unit + i < end; ++i) {
        while (unit + i >= run.end) next_run();
        multiply.template operator()<1>(unit + i, units + i * bytes);
      }
    }
    __syncwarp();
    if (lane == 0) smem.stages.release(stage.index);
  }
  while (run.end < end) next_run();
  hand_over(smem, acc, index);
}

template <typename Weights, int kTiles>
__global__ void __launch_bounds__(StreamSmem<Weights, kTiles>::kThreads,
                                  kTiles == 1 ? Weights::kCtasPerSm : 1)
    stream_gemm_kernel(const __grid_constant__ StreamGemmParams p,
                       const __grid_constant__ typename Weights::Source source, int slots) {
  extern __shared__ __align__(1024) char dynamic_smem[];
  auto& smem = *reinterpret_cast<StreamSmem<Weights, kTiles>*>(dynamic_smem);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 32) smem.init_barriers();
  if (p.expert_offsets != nullptr) {
    if constexpr (Weights::kTiled)
      if (p.static_weights && warp == kWarpWeights && lane == 0)
        prefetch_last_expert(smem, p, source);
    ptx::grid_dependency_wait();
  }
  int own_row = -1;
  if (warp == 0) list_items(smem, p, ceil_div(p.n, 16));
  else if (warp == kWarpRows) own_row = gathered_row<Weights>(p);
  __syncthreads();
  const Shares shares = smem.shares;
  const bool works = shares.units > 0 && blockIdx.x < shares.ctas;
  const int begin = works ? shares.first(blockIdx.x) : 0;
  const int end = works ? shares.first(blockIdx.x + 1) : 0;
  if (warp == kWarpWeights) {
    if (!p.static_weights) {
      if (lane == 0 && p.expert_offsets == nullptr) prefetch_weights(smem, p, source, begin, end);
      ptx::grid_dependency_wait();
    }
    if (lane == 0) {
      if (works) load_weights(smem, p, source, begin, end);
      // The next kernel's weights follow these. Any earlier, its ring would be full too soon, and
      // memory idle between the last of these and its first products.
      ptx::grid_launch_dependents();
    }
  } else {
    ptx::grid_dependency_wait();
    if (warp == kWarpRows) {
      if (works) load_rows(smem, p, own_row, smem.schedule().first(blockIdx.x).item, end);
    } else if (warp >= kWarpFinish) {
      const int thread = threadIdx.x - 32 * kWarpFinish, threads = 32 * smem.kFinishers;
      clear_tail(p, smem.last_row, blockIdx.x * threads + thread, gridDim.x * threads);
      if (works) finish_runs(smem, p, slots, warp - kWarpFinish);
    } else if (works) {
      consume(smem, p, begin, end);
    }
  }
}

}  // namespace l4k
