// The producer warps: from the block table to the ring.
#pragma once
#include "kernels/flash_decode/plan.cuh"
#include "ptx/cp_async.cuh"

namespace l4k {

// A producer warp copies one key block of each tile. What no query sees arrives as zeros and is not
// read, so that a value nobody wrote cannot turn a weight of zero into NaN. Nor is what lies in a page
// that does not exist (the consumers report it), or a key that this launch appends.
template <bool kFp8, bool kAppends>
struct DecodeProducer {
  using Smem = DecodeSmem<kFp8>;
  static constexpr int kChunks = Smem::kRowBytes / 16, kRows = 32 / kChunks;  // of a warp's copy

  const FlashDecodeParams& p;
  Smem& smem;
  int lane, row;  // row of the first copy
  int64_t row_stride;
  uint64_t policy;
  uint32_t to;  // of the first copy, in the ring's first stage
  Stage<Smem::kStages> stage{};
  // Of the split.
  int block_key, blocks;  // first key of the warp's key block in the first tile; tiles
  int first_key, end_key;
  const int* table;
  int64_t own;    // bytes from the start of a key block to what this lane copies
  int64_t place;  // of a key block in the cache; negative: nothing to read

  __device__ __forceinline__ DecodeProducer(const FlashDecodeParams& p, Smem& smem)
      : p(p),
        smem(smem),
        lane(threadIdx.x % 32),
        row(lane / kChunks),
        row_stride(int64_t{p.kv_heads} * Smem::kRowBytes),
        policy(ptx::evict_first_policy()) {
    // Chunk c of row r lies at c ^ (r % 8); rows of one lane differ in the upper bits of r.
    to = ptx::smem_address(smem.ring) + (warp() * kDecodeKeyBlock + row) * Smem::kRowBytes +
         ((lane % kChunks) ^ row) * 16;
  }

  __device__ __forceinline__ static int warp() { return threadIdx.x / 32 - kDecodeConsumers; }

  __device__ __forceinline__ void enter(const DecodeWork& work) {
    const DecodeSplit split = work.split();
    block_key = split.first_tile * kDecodeTile + warp() * kDecodeKeyBlock;
    blocks = split.tiles;
    first_key = work.sequence.first_key;
    end_key = kAppends ? work.sequence.first_position : work.sequence.end_key(p.tokens);
    table = p.block_table + work.b * p.table_stride;
    own = row * row_stride + work.head * Smem::kRowBytes + lane % kChunks * 16;
  }

  // Looks up the pages of the 32 tiles from `tile` on, a lane each.
  __device__ __forceinline__ void find_pages(int tile) {
    place = -1;
    if (tile + lane >= blocks) return;
    const int key = block_key + (tile + lane) * kDecodeTile;
    if (key + kDecodeKeyBlock <= first_key || key >= end_key) return;
    const int column = p.page_blocks.quotient(key / kDecodeKeyBlock), page = table[column];
    if (page >= 0 && page < p.num_pages)
      place = (int64_t{page - column} * p.page_size + key) * row_stride;
  }

  // Row r of what the lane copies, in the stage.
  __device__ __forceinline__ uint32_t there(int r) const {
    return ((to + stage.index * (kDecodeTile * Smem::kRowBytes)) ^ (r % 8 * 16)) +
           r * Smem::kRowBytes;
  }

  // A key block that is read whole.
  __device__ __forceinline__ void copy_all(const char* at) {
#pragma unroll
    for (int r = 0; r < kDecodeKeyBlock; r += kRows, at += kRows * row_stride)
      ptx::copy_16(there(r), at, policy);
  }

  // Rows from `first` to `end` of one. Seldom, and not unrolled: its comparisons would go first.
  __device__ __forceinline__ void copy_some(const char* at, int first, int end) {
#pragma unroll 1
    for (int r = 0; r < kDecodeKeyBlock; r += kRows, at += kRows * row_stride)
      ptx::copy_16_or_zeros(there(r), at, row + r >= first && row + r < end, policy);
  }

  // Keys, then values.
  __device__ __forceinline__ void copy_tile(int tile) {
    const int64_t from = __shfl_sync(0xffffffff, place, tile % 32);
    const int key = block_key + tile * kDecodeTile;
    const int first = first_key - key, end = from < 0 ? 0 : end_key - key;
    const int64_t at = max(from, int64_t{0}) + own;
#pragma unroll
    for (int is_value = 0; is_value < 2; ++is_value, stage.advance()) {
      const char* cache = static_cast<const char*>(is_value ? p.v_cache : p.k_cache) + at;
      smem.pipeline.wait_empty(stage);
      if (first <= 0 && end >= kDecodeKeyBlock) copy_all(cache);
      else copy_some(cache, first, end);
      ptx::copies_arrive(&smem.pipeline.full[stage.index]);
    }
  }

  __device__ __forceinline__ void run(const DecodeShape& shape) {
    DecodePlace& place_of = smem.place[threadIdx.x / 32];
    const DecodeWork& work = place_of.work;
    for (; !work.done(shape, place_of.splitting); next_split(p, shape, place_of)) {
      enter(work);
      for (int tile = 0; tile < blocks; ++tile) {
        if (tile % 32 == 0) find_pages(tile);
        // The keys of new tokens are what the launch before writes, unless this one appends them.
        const int next_key = block_key + tile * kDecodeTile + kDecodeKeyBlock;
        if (!kAppends && next_key > work.sequence.first_position) ptx::grid_dependency_wait();
        copy_tile(tile);
      }
    }
    // The next product's weights would queue before these copies. Nobody may take this for a fence.
    ptx::grid_launch_dependents();
    ptx::copies_wait();  // no thread ends before its copies and their arrivals
  }
};

}  // namespace l4k
