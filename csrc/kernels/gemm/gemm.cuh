// D[m, :] = act(row_scale[m] * (A[m, :] B[e(m)]^T) + bias) + residual[m, :], ragged by expert.
//
//   warpgroup 0, one thread      warpgroups 1, 2: 64 rows of the tile each
//   wait empty -> TMA A, B  ==>  wait full -> 4 wgmma per 128 bytes of K -> release -> ... -> finish
//
// barrier     arrives                          waits       promises
// full[s]     producer, and TMA's bytes        consumers   stage s holds A and B of one K block
// empty[s]    one thread of each consumer      producer    nobody reads stage s any more
// named 1, 2  a consumer warpgroup             itself      its staging buffer is free / written
//
// Persistent: CTA c takes tiles c, c + grid, ... of the schedule (tile/schedule.h), whose row counts
// come from device memory; a role never talks to the other except through the ring, so the producer
// runs ahead into the next tile while the consumers still store the last one. See
// docs/kernels/gemm.md for the floor and the ladder.
#pragma once
#include <cuda.h>

#include <type_traits>

#include "kernels/gemm/configs.h"
#include "kernels/gemm/epilogue.cuh"
#include "kernels/gemm/gemm.h"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "tile/pipeline.cuh"
#include "tile/report.cuh"
#include "tile/schedule.h"

namespace l4k {

constexpr int kGemmThreads = 384;
constexpr int kGemmRaster = 8;

template <int I>
struct GemmSmem {
  static constexpr GemmConfig C = kGemmConfigs[I];
  alignas(1024) char a[C.stages][C.block_m * 128];  // [rows][128 bytes of K], 128-byte swizzle
  alignas(1024) char b[C.stages][C.block_n * 128];
  alignas(1024) char d[2][64 * C.block_n * 2];  // one buffer per consumer: boxes of 64 x 128 bytes
  int row_ends[kMaxExperts], tile_ends[kMaxExperts];
  // Read anew for every tile rather than kept in registers through the products.
  RaggedSchedule schedule;
  Pipeline<C.stages> ring;
};

// Running totals of rows and row tiles per expert, by one warp. Offsets that do not ascend within
// [0, M] are clamped, so that nothing outside is touched, and reported.
__device__ __forceinline__ void scan_experts(const GemmParams& p, int block_m, int* row_ends,
                                             int* tile_ends) {
  const int lane = threadIdx.x % 32;
  int rows = 0, tiles = 0;  // totals before this round
  for (int base = 0; base < p.num_experts; base += 32) {
    const int e = base + lane;
    int end = p.m;
    if (p.expert_offsets != nullptr && e < p.num_experts) end = p.expert_offsets[e + 1];
    // A running maximum makes hostile offsets ascend; on good ones it changes nothing.
    const int given = end;
    end = min(max(end, rows), p.m);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(0xffffffff, end, step);
      if (lane >= step) end = max(end, before);
    }
    if (e < p.num_experts && end != given) report_error(p.error, DeviceError::kGemmExpertOffsets);
    int start = __shfl_up_sync(0xffffffff, end, 1);
    if (lane == 0) start = rows;
    int total = e < p.num_experts ? ceil_div(end - start, block_m) : 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(0xffffffff, total, step);
      if (lane >= step) total += before;
    }
    total += tiles;
    if (e < p.num_experts) {
      row_ends[e] = end;
      tile_ends[e] = total;
    }
    rows = __shfl_sync(0xffffffff, end, 31);
    tiles = __shfl_sync(0xffffffff, total, 31);
  }
}

template <int I>
__device__ __forceinline__ void produce(GemmSmem<I>& smem, const CUtensorMap& map_a,
                                        const CUtensorMap& map_b, int k_blocks) {
  constexpr GemmConfig C = kGemmConfigs[I];
  Stage<C.stages> stage;
  for (int index = blockIdx.x; index < smem.schedule.num_tiles(); index += gridDim.x) {
    const RaggedTile tile = smem.schedule.at(index);
    for (int block = 0; block < k_blocks; ++block, stage.advance()) {
      smem.ring.wait_empty(stage);
      uint64_t* full = &smem.ring.full[stage.index];
      ptx::mbarrier_arrive_expect_tx(full, C.stage_bytes());
      ptx::tma_load_2d(smem.a[stage.index], &map_a, full, block * C.block_k(), tile.row);
      ptx::tma_load_3d(smem.b[stage.index], &map_b, full, block * C.block_k(), tile.column,
                       tile.expert);
    }
  }
}

// 128 bytes of K: four wgmma of 32 bytes each.
template <int I>
__device__ __forceinline__ void multiply(float (&acc)[kGemmConfigs[I].block_n / 2], uint64_t a,
                                         uint64_t b, bool accumulate) {
  constexpr GemmConfig C = kGemmConfigs[I];
  using T = std::conditional_t<C.fp8, __nv_fp8_e4m3, __nv_bfloat16>;
#pragma unroll
  for (int k = 0; k < 4; ++k)  // 32 bytes are 2 units of the descriptor
    ptx::Wgmma<C.block_n, T>::ss(acc, a + 2 * k, b + 2 * k, accumulate || k > 0);
}

// Scale of one K block of a row of A; 1 where it does not depend on K.
__device__ __forceinline__ float block_scale_a(const GemmParams& p, int row, bool valid,
                                               int block) {
  if (p.scale_a != GemmScale::kBlock || !valid) return 1.f;
  return p.sfa[int64_t{row} * (p.k / 128) + block];
}

// Scale of one 128 x 128 block of B: a tile that is promoted spans one column of blocks.
__device__ __forceinline__ float block_scale_b(const GemmParams& p, const RaggedTile& tile,
                                               int block) {
  if (p.scale_b != GemmScale::kBlock) return 1.f;
  const int64_t row = int64_t{tile.expert} * ceil_div(p.n, 128) + tile.column / 128;
  return p.sfb[row * (p.k / 128) + block];
}

// Whole sums stay in the tensor core's accumulators; one K block is in flight while the one before
// it is released.
template <int I>
__device__ __forceinline__ void accumulate(float (&acc)[kGemmConfigs[I].block_n / 2],
                                           GemmSmem<I>& smem, Stage<kGemmConfigs[I].stages>& stage,
                                           int consumer, int k_blocks) {
  int previous = 0;
#pragma unroll 1  // unrolling only adds state to keep: a stage is four instructions of tensor core
  for (int block = 0; block < k_blocks; ++block, stage.advance()) {
    smem.ring.wait_full(stage);
    const uint64_t a = ptx::smem_descriptor_sw128(smem.a[stage.index] + consumer * 64 * 128);
    const uint64_t b = ptx::smem_descriptor_sw128(smem.b[stage.index]);
    ptx::wgmma_fence();
    multiply<I>(acc, a, b, block > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (block > 0 && threadIdx.x % 128 == 0) smem.ring.release(previous);
    previous = stage.index;
  }
  ptx::wgmma_wait<0>();
  if (threadIdx.x % 128 == 0) smem.ring.release(previous);
}

// e4m3 with promotion: the tensor core keeps about 14 bits of a running sum, so every 128 products
// go to float32 registers. Scratch accumulators are opened and closed inside one iteration: ptxas
// serialises groups that are in flight across the back edge.
template <int I>
__device__ __forceinline__ void accumulate_promoted(float (&acc)[kGemmConfigs[I].block_n / 2],
                                                    GemmSmem<I>& smem,
                                                    Stage<kGemmConfigs[I].stages>& stage,
                                                    int consumer, int k_blocks, const GemmParams& p,
                                                    const RaggedTile& tile, const GemmPlace& at) {
  constexpr int kRegisters = kGemmConfigs[I].block_n / 2;
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) acc[r] = 0.f;
#pragma unroll 1
  for (int block = 0; block < k_blocks; ++block, stage.advance()) {
    const float scale_b = block_scale_b(p, tile, block);
    const float factor[2] = {scale_b * block_scale_a(p, at.row[0], at.valid[0], block),
                             scale_b * block_scale_a(p, at.row[1], at.valid[1], block)};
    float scratch[kRegisters];
    smem.ring.wait_full(stage);
    const uint64_t a = ptx::smem_descriptor_sw128(smem.a[stage.index] + consumer * 64 * 128);
    const uint64_t b = ptx::smem_descriptor_sw128(smem.b[stage.index]);
    ptx::wgmma_fence();
    multiply<I>(scratch, a, b, false);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    if (threadIdx.x % 128 == 0) smem.ring.release(stage.index);
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) acc[r] += factor[r / 2 % 2] * scratch[r];
  }
}

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

template <int I>
__device__ __forceinline__ void consume(GemmSmem<I>& smem, const CUtensorMap& map_d,
                                        const GemmParams& p, int consumer, int k_blocks) {
  constexpr GemmConfig C = kGemmConfigs[I];
  Stage<C.stages> stage;
  for (int index = blockIdx.x; index < smem.schedule.num_tiles(); index += gridDim.x) {
    const RaggedTile tile = smem.schedule.at(index);
    const int first_row = tile.row + consumer * 64;
    float acc[C.block_n / 2];
    if constexpr (C.promote) {
      accumulate_promoted<I>(acc, smem, stage, consumer, k_blocks, p, tile, place(tile, first_row));
    } else {
      accumulate<I>(acc, smem, stage, consumer, k_blocks);
    }
    finish<C.gelu>(acc, p, map_d, smem.d[consumer], tile, place(tile, first_row), 1 + consumer, first_row);
  }
  ptx::tma_store_wait<0>();
}

// Rows that no expert owns come out as zeros.
__device__ __forceinline__ void clear_tail(const GemmParams& p, int first_row) {
  const int columns = p.activation == GemmActivation::kSwiglu ? p.n / 2 : p.n;
  const int64_t row_bytes = int64_t{columns} * (p.out_float32 ? 4 : 2);
  const int64_t begin = first_row * row_bytes / 8, end = p.m * row_bytes / 8;
  auto* words = static_cast<uint2*>(p.d);  // N' is a multiple of 4
  for (int64_t i = begin + int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < end;
       i += int64_t{gridDim.x} * blockDim.x)
    words[i] = make_uint2(0, 0);
}

template <int I>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm_kernel(const __grid_constant__ CUtensorMap map_a,
                const __grid_constant__ CUtensorMap map_b,
                const __grid_constant__ CUtensorMap map_d, const __grid_constant__ GemmParams p) {
  constexpr GemmConfig C = kGemmConfigs[I];
  extern __shared__ char dynamic_smem[];
  auto& smem = *reinterpret_cast<GemmSmem<I>*>(
      (reinterpret_cast<uintptr_t>(dynamic_smem) + 1023) & ~uintptr_t{1023});
  static_assert(sizeof(GemmSmem<I>) + 1024 <= 227 * 1024);

  if (threadIdx.x == 0) smem.ring.init(2);
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  if (threadIdx.x < 32) scan_experts(p, C.block_m, smem.row_ends, smem.tile_ends);
  if (threadIdx.x == 32) {
    smem.schedule = {p.num_experts, C.block_m,     C.block_n,     ceil_div(p.n, C.block_n),
                     kGemmRaster,   smem.row_ends, smem.tile_ends};
  }
  __syncthreads();
  clear_tail(p, smem.row_ends[p.num_experts - 1]);
  const int k_blocks = ceil_div(p.k, C.block_k());
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    ptx::registers_decrease<40>();
    if (threadIdx.x == 0) produce<I>(smem, map_a, map_b, k_blocks);
  } else {
    ptx::registers_increase<232>();
    consume<I>(smem, map_d, p, warpgroup - 1, k_blocks);
  }
}

}  // namespace l4k
