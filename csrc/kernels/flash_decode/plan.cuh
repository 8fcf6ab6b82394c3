// Shared memory of a CTA, and the schedule that all its threads compute together.
#pragma once
#include "kernels/flash_decode/flash_decode.h"
#include "kernels/flash_decode/schedule.h"
#include "ptx/sync.cuh"
#include "tile/pipeline.cuh"
#include "tile/reduce.cuh"

namespace l4k {

constexpr int kDecodeHeadDim = 128;
constexpr int kDecodeConsumers = 8, kDecodeProducers = 4;  // warps
constexpr int kDecodeWarps = kDecodeConsumers + kDecodeProducers;
constexpr int kDecodeKeyBlocks = kDecodeTile / kDecodeKeyBlock;  // of a tile

L4K_HD constexpr int decode_row_blocks(int rows) { return ceil_div(rows, kDecodeRows); }

L4K_HD constexpr DecodeShape decode_shape(const FlashDecodeParams& p, int grid) {
  return {.batch = p.batch,
          .items = p.kv_heads * decode_row_blocks(p.tokens * p.group),
          .tokens = p.tokens,
          .chunk = p.chunk,
          .capacity = decode_capacity(int64_t{p.max_pages} * p.page_size),
          .grid = grid};
}

template <bool kFp8>
struct DecodeSmem {
  static constexpr int kRowBytes = kFp8 ? 128 : 256, kStages = kFp8 ? 10 : 5;

  // A stage is the keys or the values of a tile; the 16-byte chunks of row r are permuted by r % 8.
  alignas(1024) char ring[kStages][kDecodeTile * kRowBytes];
  alignas(16) float wide[kDecodeConsumers][32 * 32];    // half of each warp's sums
  alignas(16) float narrow[kDecodeConsumers][16 * 32];  // a quarter
  float2 state[kDecodeConsumers][16];                   // maximum and sum of each row
  uint32_t bad[kStages][kDecodeProducers];              // a page of that tile does not exist
  Pipeline<kStages> pipeline;
  int64_t warp_tiles[kDecodeWarps], warp_length[kDecodeWarps];
  int warp_largest[kDecodeWarps];
  // Here and not in registers, which are for other things.
  DecodeSchedule schedule;
  DecodeWork work[kDecodeWarps];  // of each warp
  bool is_last;
};

__device__ __forceinline__ void decode_consumers_sync() {
  ptx::named_barrier_sync(1, kDecodeConsumers * 32);
}

// Every CTA adds up all lengths and finds its first split: the schedule never leaves the device.
template <bool kFp8>
__device__ __forceinline__ void plan_decode(const FlashDecodeParams& p, const DecodeShape& shape,
                                            DecodeSmem<kFp8>& smem) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int share = ceil_div(shape.batch, static_cast<int>(blockDim.x));
  const int first = min(static_cast<int>(threadIdx.x) * share, shape.batch);
  const int end = min(first + share, shape.batch);
  int64_t tiles = 0;
  uint32_t largest = 0;
  for (int b = first; b < end; ++b) {
    const int own = decode_sequence(shape, p.seqlens_k[b]).tiles;
    tiles += int64_t{own} * shape.items;
    largest = max(largest, own);
  }
  tiles = warp_sum(tiles);
  largest = warp_max(largest);
  if (lane == 0) {
    smem.warp_tiles[warp] = tiles;
    smem.warp_largest[warp] = static_cast<int>(largest);
  }
  if (lane == 0) smem.work[warp].b = shape.batch;  // no split, unless a thread finds one
  __syncthreads();
  DecodeTotals totals{0, 0};
  for (int w = 0; w < kDecodeWarps; ++w) {
    totals.tiles += smem.warp_tiles[w];
    totals.largest = max(totals.largest, smem.warp_largest[w]);
  }
  const DecodeSplitting splitting =
      choose_splitting(totals, int64_t{shape.batch} * shape.items, shape.grid);
  const DecodeSchedule schedule{splitting, splitting.one_wave ? shape.grid : totals.tiles};

  int64_t length = 0;  // of the thread's sequences in the schedule
  for (int b = first; b < end; ++b) {
    const int own = decode_sequence(shape, p.seqlens_k[b]).tiles;
    length += schedule.item_length(split_item(own, schedule.splitting), own) * shape.items;
  }
  int64_t place = warp_running_sum(length);
  if (lane == 31) smem.warp_length[warp] = place;
  __syncthreads();
  for (int w = 0; w < warp; ++w) place += smem.warp_length[w];
  const int cta = blockIdx.x;
  const int64_t begin = schedule.begin_of(cta, shape.grid);
  if (place - length <= begin && begin < place) {
    const Span part{begin, schedule.begin_of(cta + 1, shape.grid)};
    const DecodeWork work = first_work(shape, schedule, p.seqlens_k, first, place - length, part);
    for (DecodeWork& copy : smem.work) copy = work;
  }
  if (threadIdx.x == 0) smem.schedule = schedule;
  __syncthreads();
}

// By whole warps, each at its own place.
template <bool kFp8>
__device__ __forceinline__ void next_split(const FlashDecodeParams& p, const DecodeShape& shape,
                                           DecodeSmem<kFp8>& smem) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) smem.work[threadIdx.x / 32].advance(shape, smem.schedule, p.seqlens_k);
  __syncwarp();
}

}  // namespace l4k
