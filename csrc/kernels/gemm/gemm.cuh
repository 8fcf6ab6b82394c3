// D[m, :] = act(row_scale[m] * (A[m, :] B[e(m)]^T) + bias) + residual[m, :], ragged by expert.
//
//   warpgroup 0, a thread        warpgroups 1, 2: 64 of wgmma's rows each
//   wait empty -> TMA A, B  ==>  wait full -> 4 wgmma per 128 bytes of K -> release ...
//      ... -> TMA residual  ==>  scales, activation -> add the residual -> release -> store
//   another warp: next tile  ->  both
//
// barrier          arrives                          waits       promises
// full[s]          producer, and TMA's bytes        consumers   stage s holds A and B of one K block, or
//                                                               128 columns of the residual
// empty[s]         one thread of each consumer,     producer    nobody reads stage s any more, here
//                  of every CTA it shares with                  or where this one's multicast goes
// tile full, empty the warp that looks ahead;       all roles   the next tile's place in the matrix is
//                  producer, consumer warps                     published / has been read
// maxima_full      bytes from the other CTA         its warp    its part of the rows' largest results
// named 1, 2       a consumer warpgroup             itself      its staging buffer is free / written
// named 3          both consumers                   -           the CTA has come to cluster_barrier
// cluster_barrier  a thread per CTA of the cluster  consumers   swapped: sums are staged / read
//
// Persistent: cluster c takes tiles c, c + clusters, ... of the schedule (tile/schedule.h), whose
// row counts come from device memory; the producer never talks to a consumer except through the ring,
// so it runs ahead into the next tile while the consumers still store the last one. A
// cluster is one CTA, neighbouring tiles that share a box of A or B, or the splits of K of one tile.
// See docs/kernels/gemm.md for the floor and the ladder.
#pragma once
#include <cuda.h>

#include <type_traits>

#include "kernels/gemm/configs.h"
#include "kernels/gemm/epilogue.cuh"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/lookahead.cuh"
#include "kernels/gemm/smem.cuh"
#include "kernels/gemm/swapped.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "tile/experts.cuh"
#include "tile/pipeline.cuh"
#include "tile/schedule.h"

namespace l4k {

constexpr int kGemmRaster = 8;

// Loads a stage: a box of A and one of B. Where CTAs of the cluster share a box each one loads a
// slice of it for all; of B, those that have a box of their own load all of its slices.
template <int I>
__device__ __forceinline__ void load_stage(GemmSmem<I>& smem, const CUtensorMap& map_a,
                                           const CUtensorMap& map_b, int stage, int k,
                                           const RaggedTile& tile) {
  constexpr GemmConfig C = kGemmConfigs[I];
  constexpr uint16_t kAll = (1 << C.cluster()) - 1;
  const int rank = smem.cluster.rank;
  uint64_t* full = &smem.ring.full[stage];
  ptx::mbarrier_arrive_expect_tx(full, C.stage_bytes());
  if constexpr (C.cluster_n > 1) {
    const int slice = C.block_m / C.cluster_n * rank;
    ptx::tma_load_2d_multicast(smem.a[stage] + slice * 128, &map_a, full, k, tile.row + slice,
                               kAll);
  } else {
    ptx::tma_load_2d(smem.a[stage], &map_a, full, k, tile.row);
  }
  constexpr int kSlice = C.block_n / C.cluster_m;
  if (shares_b<I>(smem.cluster, tile)) {
    ptx::tma_load_3d_multicast(smem.b[stage] + rank * kSlice * 128, &map_b, full, k,
                               tile.column + rank * kSlice, tile.expert, kAll);
  } else {
#pragma unroll
    for (int first = 0; first < C.block_n; first += kSlice)
      ptx::tma_load_3d(smem.b[stage] + first * 128, &map_b, full, k, tile.column + first,
                       tile.expert);
  }
}

// B's first boxes of a dense product go to L2 while the previous kernel still runs. Not further: B
// may be that kernel's result. Of ragged products only it can say which expert's are needed.
template <int I>
__device__ __forceinline__ void prefetch_weights(const GemmSmem<I>& smem, const CUtensorMap& map_b,
                                                 const GemmParams& p, const GemmShare& share) {
  constexpr GemmConfig C = kGemmConfigs[I];
  if (p.expert_offsets != nullptr) return;
  const RaggedTile& tile = share.tile;
  constexpr int kSlice = C.block_n / C.cluster_m;
  const bool shared = shares_b<I>(smem.cluster, tile);
  const int column = tile.column + (shared ? kSlice * smem.cluster.rank : 0);
#pragma unroll 1
  for (int block = share.first_block; block < min(share.first_block + C.stages, share.end_block);
       ++block) {
    ptx::tma_prefetch_3d(&map_b, block * C.block_k(), column, tile.expert);
    if (C.cluster_m > 1 && !shared)
      ptx::tma_prefetch_3d(&map_b, block * C.block_k(), column + kSlice, tile.expert);
  }
}

template <int I>
__device__ __forceinline__ void produce(GemmSmem<I>& smem, const CUtensorMap& map_a,
                                        const CUtensorMap& map_b, const CUtensorMap& map_residual,
                                        const GemmParams& p) {
  constexpr GemmConfig C = kGemmConfigs[I];
  Stage<C.stages> stage;
  Stage<kGemmTiles> slot;
  GemmShare share = take_tile<1>(smem, slot);
  if (share.exists()) prefetch_weights(smem, map_b, p, share);
  ptx::grid_dependency_wait();
  for (; share.exists(); share = take_tile<1>(smem, slot)) {
    if constexpr (!C.swap) prefetch_residual<I>(map_residual, p, share);
    for (int block = share.first_block; block < share.end_block; ++block, stage.advance()) {
      smem.ring.wait_empty(stage);
      load_stage(smem, map_a, map_b, stage.index, block * C.block_k(), share.tile);
    }
    if constexpr (!C.swap) load_residual(smem, map_residual, p, share, stage);
  }
}

// 128 bytes of K: four wgmma of 32 bytes each.
template <int I, int kRegisters>
__device__ __forceinline__ void multiply(float (&acc)[kRegisters], GemmSmem<I>& smem, int stage,
                                         int first_row, bool accumulate) {
  constexpr GemmConfig C = kGemmConfigs[I];
  using T = std::conditional_t<C.fp8, __nv_fp8_e4m3, __nv_bfloat16>;
  const char* left = C.swap ? smem.b[stage] : smem.a[stage];
  const char* right = C.swap ? smem.a[stage] : smem.b[stage];
  const uint64_t a = ptx::smem_descriptor_sw128(left + first_row * 128);
  const uint64_t b = ptx::smem_descriptor_sw128(right);
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)  // 32 bytes are 2 units of the descriptor
    ptx::Wgmma<C.right(), T>::ss(acc, a + 2 * k, b + 2 * k, accumulate || k > 0);
  ptx::wgmma_commit();
}

// The factors of one K block: those of the rows of A times that of the 128 x 128 block of B under a
// column. A thread needs two rows; swapped, it needs two of every eight columns, and the warp's lanes
// hold one each of every 32. A tile lies over one column of blocks, or, if its width does not divide
// 128, over two.
template <int I, int kRegisters>
struct BlockScales {
  static constexpr GemmConfig C = kGemmConfigs[I];
  static constexpr bool kSwap = C.swap, kTwoBlocks = 128 % C.block_n != 0;
  static constexpr int kOwn = kSwap ? ceil_div(kRegisters, 16) : 2;
  float own[kOwn];
  float of_b[2];
  int boundary;  // where the second column of blocks begins in the tile

  __device__ __forceinline__ static float scale_of_b(const GemmParams& p, const RaggedTile& tile,
                                                     int column, int block) {
    if (p.scales.kind_b != GemmScale::kBlock) return 1.f;
    column = min(column, p.n - 1);  // a cluster's second tile may be past N
    const int64_t row = int64_t{tile.expert} * ceil_div(p.n, 128) + column / 128;
    return p.scales.b[row * (p.k / 128) + block];
  }

  __device__ __forceinline__ void load(const GemmParams& p, const RaggedTile& tile, int first_row,
                                       int block) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, blocks = p.k / 128;
    of_b[0] = scale_of_b(p, tile, tile.column, block);
    if constexpr (kTwoBlocks) {
      of_b[1] = scale_of_b(p, tile, tile.column + C.block_n - 1, block);
      boundary = 128 - tile.column % 128;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int row = tile.row + (kSwap ? 32 * i + lane : first_row + 16 * warp + lane / 4 + 8 * i);
      own[i] = kTwoBlocks ? 1.f : of_b[0];
      if (p.scales.kind_a == GemmScale::kBlock && row < tile.row_end)
        own[i] *= p.scales.a[int64_t{row} * blocks + block];
    }
  }

  // acc += factor * products
  __device__ __forceinline__ void add(float (&acc)[kRegisters],
                                      const float (&products)[kRegisters]) const {
#pragma unroll
    for (int r = 0; r < kRegisters; r += 4) {
      float factor[4] = {own[0], own[0], own[1 % kOwn], own[1 % kOwn]};
      if constexpr (kTwoBlocks) {  // both change at multiples of a box alone
        const int column = r / 4 * 8 / C.result_box() * C.result_box();
        const float b = column < boundary ? of_b[0] : of_b[1];
        factor[0] = factor[1] = own[0] * b;
        factor[2] = factor[3] = own[1] * b;
      }
      if constexpr (kSwap) {
        const int column = r / 4 % 4 * 8 + threadIdx.x % 4 * 2;
        factor[0] = factor[2] = __shfl_sync(0xffffffff, own[r / 16], column);
        factor[1] = factor[3] = __shfl_sync(0xffffffff, own[r / 16], column + 1);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[r + i] += factor[i] * products[r + i];
    }
  }
};

// Whole sums stay in the tensor core's accumulators; one K block is in flight while the one before
// it is released. Returns the stage of the last one, which still is.
template <int I, int kRegisters>
__device__ __forceinline__ int accumulate(float (&acc)[kRegisters], GemmSmem<I>& smem,
                                          Stage<kGemmConfigs[I].stages>& stage, int consumer,
                                          int blocks) {
  int previous = 0;
#pragma unroll 1  // unrolling only adds state to keep: a stage is four instructions of tensor core
  for (int block = 0; block < blocks; ++block, stage.advance()) {
    smem.ring.wait_full(stage);
    multiply<I>(acc, smem, stage.index, 64 * consumer, block > 0);
    ptx::wgmma_wait<1>();
    if (block > 0) release(smem, previous);
    previous = stage.index;
  }
  return previous;
}

// e4m3 with promotion: the tensor core keeps about 14 bits of a running sum, so every 128 products
// go to float32 registers. Scratch accumulators are opened and closed inside one iteration: ptxas
// serialises groups that are in flight across the back edge.
template <int I, int kSubTiles, int kRegisters>
__device__ __forceinline__ void accumulate_promoted(float (&acc)[kSubTiles][kRegisters],
                                                    GemmSmem<I>& smem,
                                                    Stage<kGemmConfigs[I].stages>& stage,
                                                    int consumer, const GemmParams& p,
                                                    const GemmShare& share) {
  const int sub_tiles = sub_tiles_of<I>(share.tile);
#pragma unroll
  for (int r = 0; r < kSubTiles * kRegisters; ++r) acc[r / kRegisters][r % kRegisters] = 0.f;
#pragma unroll 1
  for (int block = share.first_block; block < share.end_block; ++block, stage.advance()) {
    smem.ring.wait_full(stage);
#pragma unroll
    for (int sub_tile = 0; sub_tile < kSubTiles; ++sub_tile) {
      if (sub_tile >= sub_tiles) break;
      const int first_row = 128 * sub_tile + 64 * consumer;
      float scratch[kRegisters];
      multiply<I>(scratch, smem, stage.index, first_row, false);
      // The scales arrive while the products run.
      BlockScales<I, kRegisters> scales;
      scales.load(p, share.tile, first_row, block);
      ptx::wgmma_wait<0>();
      if (sub_tile == sub_tiles - 1) release(smem, stage.index);
      scales.add(acc[sub_tile], scratch);
    }
  }
}

// Where a consumer stands from tile to tile.
template <int I>
struct ConsumerState {
  Stage<kGemmConfigs[I].stages> stage;
  uint32_t exchanges = 0;  // of maxima
};

__device__ __forceinline__ GemmPlace place(const RaggedTile& tile, int first_row) {
  GemmPlace at;
  at.warp = threadIdx.x / 32 % 4;
  at.lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    at.row[h] = first_row + 16 * at.warp + at.lane / 4 + 8 * h;
    at.valid[h] = at.row[h] < tile.row_end;
  }
  at.column = tile.column + 2 * (at.lane % 4);
  return at;
}

// Two splits of K: each CTA finishes the rows of one consumer and adds to its sums those of the other
// CTA, in which order makes no difference. Returns whether this consumer is the one.
template <int I, int kRegisters>
__device__ __forceinline__ bool add_halves(float (&acc)[kRegisters], GemmSmem<I>& smem,
                                           int consumer) {
  constexpr GemmConfig C = kGemmConfigs[I];
  const int thread = threadIdx.x - 128, rank = smem.cluster.rank;
  const bool finishes = consumer == rank;
  // Every thread finds the sums of its own registers where it would have staged them.
  auto* sums = reinterpret_cast<float4*>(smem.staging + 2 * C.result_bytes()) + thread % 128;
  if (!finishes) {
#pragma unroll
    for (int r = 0; r < kRegisters; r += 4)
      sums[32 * r] = make_float4(acc[r], acc[r + 1], acc[r + 2], acc[r + 3]);
  }
  smem.cluster_barrier.arrive(kBarrierConsumers, kGemmConsumers, thread, 2);
  smem.cluster_barrier.wait(0);
  if (finishes) {
#pragma unroll
    for (int r = 0; r < kRegisters; r += 4) {
      const float4 other = ptx::load_cluster(sums + 32 * r, rank ^ 1);
      acc[r] += other.x;
      acc[r + 1] += other.y;
      acc[r + 2] += other.z;
      acc[r + 3] += other.w;
    }
  }
  smem.cluster_barrier.arrive(kBarrierConsumers, kGemmConsumers, thread, 2);
  smem.cluster_barrier.wait(1);
  return finishes;
}

// What follows the products of 128 rows of a tile.
template <int I, int kRegisters>
__device__ __forceinline__ void finish(float (&acc)[kRegisters], GemmSmem<I>& smem,
                                       const CUtensorMap& map_d, const GemmParams& p,
                                       const GemmShare& share, const GemmPlace& at,
                                       const RowFactors& factors, int consumer,
                                       ConsumerState<I>& state) {
  constexpr GemmConfig C = kGemmConfigs[I];
  if constexpr (C.split_k) {
    if (smem.cluster.splits > 1 && !add_halves<I>(acc, smem, consumer))
      return skip_residual(smem, state.stage, share.residual_stages);
  }
  const int first_row = at.row[0] - 16 * at.warp - at.lane / 4;
  scale_and_bias<C.fp8>(acc, p, share.tile, at, factors);
  if constexpr (C.gelu) {
    gelu(acc);
  } else if constexpr (C.swiglu()) {
    if (p.epilogue.activation == Activation::kSwiglu) {
      swiglu(acc);
      if constexpr (C.fp8_results()) {
        if (p.d_scale != nullptr)
          return store_fp8<I>(acc, p, smem, share.tile, at, consumer, state.exchanges++);
      }
      return store<I, kRegisters / 2>(acc, p, map_d, smem, state.stage, share, at, consumer,
                                      first_row);
    }
  }
  store<I, kRegisters>(acc, p, map_d, smem, state.stage, share, at, consumer, first_row);
}

template <int I>
__device__ __forceinline__ void consume(GemmSmem<I>& smem, const CUtensorMap& map_d,
                                        const GemmParams& p, int consumer) {
  constexpr GemmConfig C = kGemmConfigs[I];
  Stage<kGemmTiles> slot;
  ConsumerState<I> state;
  while (next_tile(smem, slot).exists()) {
    // Read where it lies: its values are not kept in registers through the products.
    const GemmShare& next = smem.tiles[slot.index];
    float acc[C.sub_tiles()][C.right() / 2];
    if constexpr (C.promote) {
      accumulate_promoted<I>(acc, smem, state.stage, consumer, p, next);
      const GemmShare share = take_tile<32>(smem, slot);
      const RaggedTile& tile = share.tile;
      if constexpr (C.swap) {
        finish_swapped<I>(acc[0], p, smem, tile, consumer);
      } else {
        const auto finish_sub_tile = [&](float (&own)[C.right() / 2], int sub_tile) {
          const GemmPlace at = place(tile, tile.row + 128 * sub_tile + 64 * consumer);
          finish(own, smem, map_d, p, share, at, RowFactors(p, tile, at), consumer, state);
        };
        finish_sub_tile(acc[0], 0);
        if (sub_tiles_of<I>(tile) > 1) finish_sub_tile(acc[C.sub_tiles() - 1], 1);
      }
    } else {
      const int last =
          accumulate<I>(acc[0], smem, state.stage, consumer, next.end_block - next.first_block);
      // Under the last products.
      const GemmShare share = take_tile<32>(smem, slot);
      const GemmPlace at = place(share.tile, share.tile.row + 64 * consumer);
      const RowFactors factors(p, share.tile, at);
      ptx::wgmma_wait<0>();
      release(smem, last);
      if constexpr (C.swap) finish_swapped<I>(acc[0], p, smem, share.tile, consumer);
      else finish(acc[0], smem, map_d, p, share, at, factors, consumer, state);
    }
  }
  ptx::tma_store_wait<0>();
}

// Rows that no expert owns come out as zeros, with scale 1. By the consumers.
__device__ __forceinline__ void clear_tail(const GemmParams& p, int first_row) {
  const int columns = p.epilogue.activation == Activation::kSwiglu ? p.n / 2 : p.n;
  const bool fp8 = p.d_scale != nullptr;
  const int64_t row_bytes = int64_t{columns} * (fp8 ? 1 : p.epilogue.out_float32 ? 4 : 2);
  const int64_t first = int64_t{blockIdx.x} * kGemmConsumers + threadIdx.x - 128;
  const int64_t step = int64_t{gridDim.x} * kGemmConsumers;
  auto* words = static_cast<uint2*>(p.epilogue.d);  // N' is a multiple of 8
  for (int64_t i = first_row * row_bytes / 8 + first; i < p.m * row_bytes / 8; i += step)
    words[i] = make_uint2(0, 0);
  if (!fp8) return;
  const int64_t scales = columns / kScaleBlock;
  for (int64_t i = first_row * scales + first; i < p.m * scales; i += step) p.d_scale[i] = 1.f;
}

template <int I>
__global__ void __launch_bounds__(kGemmThreads, kGemmConfigs[I].ctas_per_sm())
    gemm_kernel(const __grid_constant__ CUtensorMap map_a,
                const __grid_constant__ CUtensorMap map_b,
                const __grid_constant__ CUtensorMap map_d,
                const __grid_constant__ CUtensorMap map_residual,
                const __grid_constant__ GemmParams p) {
  constexpr GemmConfig C = kGemmConfigs[I];
  extern __shared__ __align__(1024) char dynamic_smem[];
  auto& smem = *reinterpret_cast<GemmSmem<I>*>(dynamic_smem);
  static_assert(sizeof(GemmSmem<I>) == C.smem_bytes());

  const int ctas = C.swap ? p.ctas_per_tile : C.cluster();
  const bool pair = C.cluster_m > 1 && !(C.split_k && p.choice.splits > 1);
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&map_a);
    ptx::prefetch_tensor_map(&map_b);
    smem.cluster_barrier.init(ctas);
    for (auto& barriers : smem.maxima_full)
      for (uint64_t& barrier : barriers) ptx::mbarrier_init(&barrier, 1);
    smem.tile_ring.init(1 + kGemmConsumers / 32);
    smem.ring.init(2 * C.cluster());
  }
  ptx::grid_launch_dependents();
  if (p.expert_offsets != nullptr) ptx::grid_dependency_wait();
  const int width = C.block_n * (C.swap && p.d_scale != nullptr ? 2 : C.cluster_n);
  const RaggedSchedule schedule{.num_experts = p.num_experts,
                                .block_m = pair ? C.block_m * C.cluster_m : C.block_m,
                                .block_n = width,
                                .column_tiles = ceil_div(p.n, width),
                                .raster = kGemmRaster,
                                .tail_tiles = pair,
                                .row_ends = smem.row_ends,
                                .tile_ends = smem.tile_ends};
  if (threadIdx.x < 32)
    scan_experts(p, DeviceError::kGemmExpertOffsets, schedule, smem.row_ends, smem.tile_ends);
  if (threadIdx.x == 32) smem.cluster = GemmCluster::of(ctas, p.choice.splits);
  __syncthreads();
  // Barriers of all CTAs are ready before anyone copies or arrives elsewhere.
  if (ctas > 1) {
    ptx::cluster_arrive_relaxed();
    ptx::cluster_wait();
  }
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    ptx::registers_decrease<C.producer_registers()>();
    if (threadIdx.x == 0) produce<I>(smem, map_a, map_b, map_residual, p);
    if (threadIdx.x / 32 == 1) publish_tiles<I>(smem, schedule, p);
    __syncwarp();
  } else {
    ptx::registers_increase<C.consumer_registers()>();
    ptx::grid_dependency_wait();
    clear_tail(p, smem.row_ends[p.num_experts - 1]);
    consume<I>(smem, map_d, p, warpgroup - 1);
  }
  // No CTA exits while another may still copy into it, arrive at it or read its sums. Where K is
  // split nobody copies into it, and the last phase of cluster_barrier says that its sums are read.
  if constexpr (C.swap) {
    if (ctas > 1 && warpgroup > 0) smem.cluster_barrier.wait(1);
  } else if (ctas > 1) {
    ptx::cluster_sync();
  }
}

}  // namespace l4k
