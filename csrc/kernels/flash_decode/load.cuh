// Shared memory of a CTA, the plan that all its threads make together, and the warps that fill the
// ring.
#pragma once
#include "kernels/flash_decode/flash_decode.h"
#include "kernels/flash_decode/split.h"
#include "ptx/cp_async.cuh"
#include "ptx/sync.cuh"
#include "tile/pipeline.cuh"
#include "tile/reduce.cuh"
#include "tile/report.cuh"

namespace l4k {

constexpr int kDecodeHeadDim = 128;
constexpr int kDecodeConsumers = 8, kDecodeProducers = 4;  // warps
constexpr int kDecodeWarps = kDecodeConsumers + kDecodeProducers;
constexpr int kDecodeGranules = kDecodeTile / kDecodeGranule;  // of a tile

L4K_HD constexpr int decode_row_blocks(int rows) { return ceil_div(rows, kDecodeRows); }

L4K_HD constexpr DecodeShape decode_shape(const FlashDecodeParams& p, int grid) {
  return {p.batch, p.kv_heads * decode_row_blocks(p.tokens * p.group),  p.tokens,
          p.chunk, decode_capacity(int64_t{p.max_pages} * p.page_size), grid};
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
  // The plan: registers are for other things.
  DecodeLine line;
  DecodeWalk walk[kDecodeWarps];  // of each warp
  bool is_last;
};

// Every CTA adds up all lengths and finds its first piece: the split lives on the device.
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
    const int own = decode_sequence(shape, p.lengths[b]).tiles;
    tiles += int64_t{own} * shape.heads;
    largest = max(largest, own);
  }
  tiles = warp_sum(tiles);
  largest = warp_max(largest);
  if (lane == 0) {
    smem.warp_tiles[warp] = tiles;
    smem.warp_largest[warp] = static_cast<int>(largest);
  }
  if (lane == 0) smem.walk[warp].b = shape.batch;  // no piece, unless a thread finds one
  __syncthreads();
  DecodeTotals totals{0, 0};
  for (int w = 0; w < kDecodeWarps; ++w) {
    totals.tiles += smem.warp_tiles[w];
    totals.largest = max(totals.largest, smem.warp_largest[w]);
  }
  const DecodeSplit split = decode_split(totals, int64_t{shape.batch} * shape.heads, shape.grid);
  const DecodeLine line{split, split.one_wave ? shape.grid : totals.tiles};

  int64_t length = 0;  // of the thread's sequences on the line
  for (int b = first; b < end; ++b) {
    const int own = decode_sequence(shape, p.lengths[b]).tiles;
    length += line.item_length(decode_cut(own, line.split), own) * shape.heads;
  }
  int64_t place = warp_running_sum(length);
  if (lane == 31) smem.warp_length[warp] = place;
  __syncthreads();
  for (int w = 0; w < warp; ++w) place += smem.warp_length[w];
  const int cta = blockIdx.x;
  const int64_t begin = line.begin_of(cta, shape.grid);
  if (place - length <= begin && begin < place) {
    const DecodeWalk walk = decode_walk(shape, line, p.lengths, first, place - length, begin,
                                        line.begin_of(cta + 1, shape.grid));
    for (DecodeWalk& copy : smem.walk) copy = walk;
  }
  if (threadIdx.x == 0) smem.line = line;
  __syncthreads();
}

template <bool kFp8>
__device__ __forceinline__ void next_piece(const FlashDecodeParams& p, const DecodeShape& shape,
                                           DecodeSmem<kFp8>& smem) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) smem.walk[threadIdx.x / 32].advance(shape, smem.line, p.lengths);
  __syncwarp();
}

// A producer warp copies two granules of each tile. What no query sees arrives as zeros and is not
// read, so that a value nobody wrote cannot turn a weight of zero into NaN.
template <bool kFp8>
__device__ __forceinline__ void load_tiles(const FlashDecodeParams& p, const DecodeShape& shape,
                                           DecodeSmem<kFp8>& smem) {
  using Smem = DecodeSmem<kFp8>;
  constexpr int kChunks = Smem::kRowBytes / 16, kRows = 32 / kChunks;  // of one copy of a warp
  constexpr int kMine = kDecodeGranules / kDecodeProducers;
  constexpr int kAhead = 32 / kMine;  // tiles whose pages the lanes look up together
  const int warp = threadIdx.x / 32 - kDecodeConsumers, lane = threadIdx.x % 32;
  const int row = lane / kChunks;  // of the first copy
  const int row_blocks = shape.heads / p.kv_heads;
  const int64_t row_stride = int64_t{p.kv_heads} * Smem::kRowBytes;
  const uint64_t policy = ptx::evict_first_policy();
  Stage<Smem::kStages> stage;

  const DecodeWalk& walk = smem.walk[threadIdx.x / 32];
  for (; !walk.done(shape, smem.line); next_piece(p, shape, smem)) {
    const Piece piece = walk.piece();
    const int first_key = static_cast<int>(walk.sequence.keys.first);
    const uint32_t keys = static_cast<uint32_t>(walk.sequence.keys.end) - first_key;
    const int* table = p.block_table + walk.b * p.table_stride;
    const int64_t own =
        row * row_stride + walk.head / row_blocks * Smem::kRowBytes + lane % kChunks * 16;
    if (!walk.sequence.valid && lane == 0) report_error(p.error, DeviceError::kFlashDecodeSeqlens);
    const auto granule_key = [&](int tile, int i) {
      return (piece.first_tile + tile) * kDecodeTile +
             (warp + i * kDecodeProducers) * kDecodeGranule;
    };
    int64_t place = -1;  // of the lane's granule in the cache; negative: nothing to read
    uint32_t bad = 0;    // lanes whose page does not exist
    for (int tile = 0; tile < piece.tiles; ++tile) {
      const int source = tile % kAhead * kMine;
      if (source == 0) {
        const int ahead = tile + lane / kMine, key = granule_key(ahead, lane % kMine);
        const bool seen = ahead < piece.tiles && key + kDecodeGranule > first_key &&
                          key < static_cast<int>(first_key + keys);
        const int column = seen ? key / p.page_size : 0;
        const int page = seen ? table[column] : -1;
        const bool exists = page >= 0 && page < p.num_pages;
        place = exists ? (int64_t{page - column} * p.page_size + key) * row_stride : -1;
        bad = __ballot_sync(0xffffffff, seen && !exists);
        if (bad != 0 && lane == 0) report_error(p.error, DeviceError::kFlashDecodeBlockTable);
      }
      int64_t from[kMine];
      uint32_t first[kMine], count[kMine];  // rows with first + r < count are read
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        from[i] = __shfl_sync(0xffffffff, place, source + i);
        count[i] = from[i] < 0 ? 0 : keys;
        from[i] = max(from[i], int64_t{0}) + own;
        first[i] = granule_key(tile, i) + row - first_key;
      }
#pragma unroll 1  // registers: unrolled, the addresses of both are kept
      for (int is_value = 0; is_value < 2; ++is_value, stage.advance()) {
        const char* cache = static_cast<const char*>(is_value ? p.v_cache : p.k_cache);
        smem.pipeline.wait_empty(stage);
        uint64_t* full = &smem.pipeline.full[stage.index];
        // Chunk c of row r lies at c ^ (r % 8); rows of one lane differ in the upper bits of r.
        const uint32_t to = ptx::smem_address(smem.ring[stage.index]) +
                            (warp * kDecodeGranule + row) * Smem::kRowBytes +
                            ((lane % kChunks) ^ row) * 16;
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          const char* at = cache + from[i];
#pragma unroll
          for (int r = 0; r < kDecodeGranule; r += kRows) {
            const int rows_on = i * kDecodeProducers * kDecodeGranule + r;
            ptx::copy_16_or_zeros((to ^ (r % 8 * 16)) + rows_on * Smem::kRowBytes, at,
                                  first[i] + r < count[i], policy);
            at += kRows * row_stride;
          }
        }
        ptx::copies_arrive(full);
        // Copies arrive on their own behalf; this arrival carries the flag.
        if (lane == 0) {
          smem.bad[stage.index][warp] = bad >> source & ((1 << kMine) - 1);
          ptx::mbarrier_arrive(full);
        }
      }
    }
  }
  ptx::copies_wait();  // no thread ends before its copies and their arrivals
}

}  // namespace l4k
