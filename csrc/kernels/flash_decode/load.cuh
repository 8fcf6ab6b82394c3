// The producer warps: from the block table to the ring.
#pragma once
#include "kernels/flash_decode/plan.cuh"
#include "ptx/cp_async.cuh"
#include "tile/report.cuh"

namespace l4k {

// A producer warp copies two key blocks of each tile. What no query sees arrives as zeros and is not
// read, so that a value nobody wrote cannot turn a weight of zero into NaN. Nor are the keys of new
// tokens that this launch appends.
template <bool kFp8, bool kAppends>
struct DecodeProducer {
  using Smem = DecodeSmem<kFp8>;
  static constexpr int kChunks = Smem::kRowBytes / 16, kRows = 32 / kChunks;  // of a warp's copy
  static constexpr int kBlocks = kDecodeKeyBlocks / kDecodeProducers;         // of a tile, one warp
  static constexpr int kAhead = 32 / kBlocks;  // tiles whose pages the lanes look up together

  const FlashDecodeParams& p;
  Smem& smem;
  int warp, lane, row;  // of the producers; row of the first copy
  int64_t row_stride;
  uint64_t policy;
  Stage<Smem::kStages> stage{};
  // Of the split.
  DecodeSplit split;
  int first_key;
  uint32_t keys;  // from first_key on
  const int* table;
  int64_t own;    // bytes from the start of a key block to what this lane copies
  int64_t place;  // of the lane's key block in the cache; negative: nothing to read
  uint32_t bad;   // lanes whose page does not exist

  __device__ __forceinline__ DecodeProducer(const FlashDecodeParams& p, Smem& smem)
      : p(p),
        smem(smem),
        warp(threadIdx.x / 32 - kDecodeConsumers),
        lane(threadIdx.x % 32),
        row(lane / kChunks),
        row_stride(int64_t{p.kv_heads} * Smem::kRowBytes),
        policy(ptx::evict_first_policy()) {}

  // The first key of the warp's i-th key block of a tile.
  __device__ __forceinline__ int block_key(int tile, int i) const {
    return (split.first_tile + tile) * kDecodeTile +
           (warp + i * kDecodeProducers) * kDecodeKeyBlock;
  }

  // Looks up the pages of the kAhead tiles from `tile` on, a key block per lane.
  __device__ __forceinline__ void find_pages(int tile) {
    const int ahead = tile + lane / kBlocks, key = block_key(ahead, lane % kBlocks);
    const bool seen = ahead < split.tiles && key + kDecodeKeyBlock > first_key &&
                      key < static_cast<int>(first_key + keys);
    const int column = seen ? key / p.page_size : 0;
    const int page = seen ? table[column] : -1;
    const bool exists = page >= 0 && page < p.num_pages;
    place = exists ? (int64_t{page - column} * p.page_size + key) * row_stride : -1;
    bad = __ballot_sync(0xffffffff, seen && !exists);
    if (bad != 0 && lane == 0) report_error(p.error, DeviceError::kFlashDecodeBlockTable);
  }

  // Keys, then values; lanes from `source` on hold the places of the tile's key blocks.
  __device__ __forceinline__ void copy(int tile, int source) {
    int64_t from[kBlocks];
    uint32_t first[kBlocks], count[kBlocks];  // rows with first + r < count are read
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      from[i] = __shfl_sync(0xffffffff, place, source + i);
      count[i] = from[i] < 0 ? 0 : keys;
      from[i] = max(from[i], int64_t{0}) + own;
      first[i] = block_key(tile, i) + row - first_key;
    }
#pragma unroll 1  // registers: unrolled, the addresses of both are kept
    for (int is_value = 0; is_value < 2; ++is_value, stage.advance()) {
      const char* cache = static_cast<const char*>(is_value ? p.v_cache : p.k_cache);
      smem.pipeline.wait_empty(stage);
      uint64_t* full = &smem.pipeline.full[stage.index];
      // Chunk c of row r lies at c ^ (r % 8); rows of one lane differ in the upper bits of r.
      const uint32_t to = ptx::smem_address(smem.ring[stage.index]) +
                          (warp * kDecodeKeyBlock + row) * Smem::kRowBytes +
                          ((lane % kChunks) ^ row) * 16;
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        const char* at = cache + from[i];
#pragma unroll
        for (int r = 0; r < kDecodeKeyBlock; r += kRows) {
          const int rows_on = i * kDecodeProducers * kDecodeKeyBlock + r;
          ptx::copy_16_or_zeros((to ^ (r % 8 * 16)) + rows_on * Smem::kRowBytes, at,
                                first[i] + r < count[i], policy);
          at += kRows * row_stride;
        }
      }
      ptx::copies_arrive(full);
      // Copies arrive on their own behalf; this arrival carries the flag.
      if (lane == 0) {
        smem.bad[stage.index][warp] = bad >> source & ((1 << kBlocks) - 1);
        ptx::mbarrier_arrive(full);
      }
    }
  }

  __device__ __forceinline__ void run(const DecodeShape& shape) {
    const int row_blocks = shape.items / p.kv_heads;
    const DecodeWork& work = smem.work[threadIdx.x / 32];
    for (; !work.done(shape, smem.schedule); next_split(p, shape, smem)) {
      split = work.split();
      const Span seen = work.sequence.keys;
      const int64_t stored = max(work.sequence.first_position, seen.first);
      first_key = static_cast<int>(seen.first);
      keys = static_cast<uint32_t>(kAppends ? stored : seen.end) - first_key;
      table = p.block_table + work.b * p.table_stride;
      own = row * row_stride + work.item / row_blocks * Smem::kRowBytes + lane % kChunks * 16;
      if (!work.sequence.valid && lane == 0)
        report_error(p.error, DeviceError::kFlashDecodeSeqlens);
      place = -1;
      bad = 0;
      for (int tile = 0; tile < split.tiles; ++tile) {
        const int source = tile % kAhead * kBlocks;
        if (source == 0) find_pages(tile);
        copy(tile, source);
      }
    }
    ptx::copies_wait();  // no thread ends before its copies and their arrivals
  }
};

}  // namespace l4k
