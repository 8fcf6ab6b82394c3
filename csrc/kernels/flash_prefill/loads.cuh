// Shared memory of a CTA, and the roles that fill it: one warp of TMA loads through the block
// table, and for an e4m3 cache three warps that convert to f16.
#pragma once
#include <cuda.h>

#include "kernels/flash_prefill/lists.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "tile/f16.cuh"
#include "tile/pipeline.cuh"
#include "tile/report.cuh"
#include "tile/swizzle.h"

namespace l4k {

constexpr int kHalfTile = 128 * 128;  // 128 rows of 128 bytes: half of D in 16 bits, all in e4m3
constexpr int kConverters = 3;        // warps

// Slots of a page that one box takes: it divides both a page and a tile of keys.
L4K_HD constexpr int box_slots(int page_size) {
  const int lowest_bit = page_size & -page_size;
  return lowest_bit < kPrefillKeys ? lowest_bit : kPrefillKeys;
}

template <bool kFp8>
struct PrefillSmem {
  static constexpr int kStages = kFp8 ? 4 : 5, kRawStages = 2;

  // Tiles are [half of D][rows][128 bytes] with the 128-byte swizzle.
  alignas(1024) char q[2][kHalfTile];
  alignas(1024) char out[8][2][16 * 128];  // staging of each consumer warp: 16 rows
  alignas(1024) char kv[kStages][2][kHalfTile];
  alignas(1024) char raw[kFp8 ? kRawStages : 1][kFp8 ? kHalfTile : 16];
  Pipeline<kStages> ring;
  Pipeline<kRawStages> raw_ring;
  uint64_t q_full, q_empty;
  // One bit per box whose page does not exist, of a stage in even and odd rounds of the ring: the
  // producer is less than a round of both rings ahead.
  uint32_t bad[2][kStages];
  // Of this item and the next: the consumers have no registers to keep it in, and need it still
  // when they have handed back Q.
  PrefillWork work[2];

  __device__ __forceinline__ void init(const FlashPrefillParams& p) {
    if (threadIdx.x == 0) {
      ring.init(8, kFp8 ? kConverters : 1);
      raw_ring.init(kConverters);
      ptx::mbarrier_init(&q_full, 1);
      ptx::mbarrier_init(&q_empty, 8);
      ptx::fence_mbarrier_init();
    }
    // Rows of Q past the last whole token are never loaded.
    const int group = p.group.value, used = prefill_tokens(group) * group;
    for (int i = used * 128 + threadIdx.x * 16; i < kHalfTile; i += blockDim.x * 16)
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint4*>(&q[half][i]) = make_uint4(0, 0, 0, 0);
    ptx::fence_proxy_async();
  }
};

// Calls role(work) for every piece of this CTA.
template <typename Role>
__device__ __forceinline__ void for_each_work(const FlashPrefillParams& p, Role& role) {
  const int kv_heads = p.kv_heads, ctas = static_cast<int>(gridDim.x);
  for (int round = 0;; ++round) {
    const PrefillLists lists(p);  // read again: the converters have no registers to keep it in
    const int count = lists.pieces * kv_heads, index = snake(round, blockIdx.x, ctas);
    if (round * ctas >= count) return;
    PrefillWork work;
    if (index < count && lists.find(lists.items[index / kv_heads], index % kv_heads, work))
      role(work);
  }
}

// Warp 0. Lane l loads box l % boxes of every tile, and in bf16 half l / boxes of its D.
template <bool kFp8>
struct PrefillProducer {
  using Smem = PrefillSmem<kFp8>;
  Smem& smem;
  const FlashPrefillParams& p;
  const CUtensorMap &map_q, &map_k, &map_v;
  Stage<Smem::kStages> stage{};   // of the tile for the consumers
  Stage<Smem::kRawStages> raw{};  // e4m3 only: of the copy
  uint32_t items = 0;

  // Where this lane's box of a tile is; slot -1 if nobody sees it. The page comes straight from
  // the table and is looked at only when it is needed, so that reading it takes no time.
  struct Box {
    int page, slot;
  };

  __device__ __forceinline__ Box find(const PrefillWork& work, int key_tile) const {
    const int slots = box_slots(p.page_size);
    const int key = key_tile * kPrefillKeys + threadIdx.x * slots % kPrefillKeys;
    // key + slots may be 2^31.
    if (key <= work.first_key - slots || key >= work.end_key) return {0, -1};
    // Not negative, so divided without signs.
    const uint32_t page_size = p.page_size, index = key / page_size, slot = key % page_size;
    if (index >= p.max_pages) return {-1, static_cast<int>(slot)};
    return {p.block_table[work.sequence * p.table_stride + index], static_cast<int>(slot)};
  }

  __device__ __forceinline__ void load(const CUtensorMap& map, const PrefillWork& work, Box at) {
    const int lane = threadIdx.x, slots = box_slots(p.page_size), boxes = kPrefillKeys / slots;
    // A page past the last one lies outside of the tensor map and arrives as zeros: what a box gets
    // that nobody sees, and one whose page does not exist.
    const bool exists = 0 <= at.page && at.page < p.num_pages;
    const uint32_t bad = __ballot_sync(0xffffffff, at.slot >= 0 && !exists) & ((1u << boxes) - 1);
    if (at.slot < 0 || !exists) at = {p.num_pages, 0};
    if constexpr (kFp8) smem.raw_ring.wait_empty(raw);
    else smem.ring.wait_empty(stage);
    uint64_t* full = kFp8 ? &smem.raw_ring.full[raw.index] : &smem.ring.full[stage.index];
    if (lane == 0) {
      smem.bad[stage.phase][stage.index] = bad;
      if (bad != 0) report_error(p.error, DeviceError::kFlashPrefillPages);
      ptx::mbarrier_arrive_expect_tx(full, kHalfTile * (kFp8 ? 1 : 2));
    }
    __syncwarp();  // no copy lands before its bytes are expected
    if (lane < boxes * (kFp8 ? 1 : 2)) {
      const int half = lane >= boxes, row = lane * slots % kPrefillKeys;
      char* to = kFp8 ? smem.raw[raw.index] : smem.kv[stage.index][half];
      ptx::tma_load_4d(to + row * 128, &map, full, half * 64, work.kv_head, at.slot, at.page);
    }
    stage.advance();
    raw.advance();
  }

  // Hands the consumers their next item, and Q with it.
  __device__ __forceinline__ void publish(const PrefillWork& work) {
    ptx::mbarrier_wait(&smem.q_empty, items % 2 ^ 1);
    if (threadIdx.x == 0) {
      smem.work[items % 2] = work;
      const int group = p.group.value;
      const bool load = work.row >= 0 && work.first_tile < work.end_tile;
      ptx::mbarrier_arrive_expect_tx(&smem.q_full, load ? prefill_tokens(group) * group * 256 : 0);
      for (int half = 0; load && half < 2; ++half)
        ptx::tma_load_3d(smem.q[half], &map_q, &smem.q_full, half * 64, work.kv_head * group,
                         work.row);
    }
    __syncwarp();
    ++items;
  }

  __device__ __forceinline__ void operator()(const PrefillWork& work) {
    publish(work);
    if (work.first_tile >= work.end_tile) return;
    // The block table is read one tile ahead; V follows the next tile's K, but for the last of those
    // that are added up in one go.
    Box previous, current = find(work, work.first_tile);
    for (int tile = work.first_tile; tile < work.end_tile; ++tile) {
      const Box next = tile + 1 < work.end_tile ? find(work, tile + 1) : current;
      const bool anew = (tile - work.first_tile) % kAnchorTiles == 0;
      if (anew && tile > work.first_tile) load(map_v, work, previous);
      load(map_k, work, current);
      if (!anew) load(map_v, work, previous);
      previous = current;
      current = next;
    }
    load(map_v, work, previous);
  }
};

// Warps 1-3 of an e4m3 cache's kernel: a tile of 128 rows of 128 bytes becomes one of f16.
struct PrefillConverter {
  using Smem = PrefillSmem<true>;
  Smem& smem;
  const int warp;
  uint32_t round = 0;  // of two loads

  // Sixteen groups of 8 rows in two halves of D are 32 units, dealt to three warps: every third
  // group of one half, and of the other. Addresses are constants, and loads run ahead.
  __device__ __forceinline__ void convert(const char* raw, char (&tile)[2][kHalfTile]) const {
    static_assert(kConverters == 3 && kPrefillKeys == 128);
    // Eight lanes move four 16-byte vectors of two rows that differ in bits 0 and 2: no two of the
    // loads, and no two of the stores, then share a bank.
    const int lane = threadIdx.x % 32, column = lane % 4;
    const uint32_t row = (lane / 8 ^ (lane / 4 % 2 * 5)) * 128;  // in a group of 8
    const uint32_t low = swizzle_128(row + column * 32), high = swizzle_128(row + column * 32 + 16);
    const char* from[2];
    char* to[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int half = warp == 1 ? 1 - i : i;
      const int group = warp == 2 ? 2 : i;  // the first
      from[i] = raw + group * 1024 + swizzle_128(row + (half * 4 + column) * 16);
      to[i] = tile[half] + group * 1024;
    }
    const auto load = [&](int i, int group) {
      return *reinterpret_cast<const uint4*>(from[i] + group * 1024);
    };
    const auto store = [&](int i, int group, uint4 bytes) {
      *reinterpret_cast<uint4*>(to[i] + group * 1024 + low) = fp8_to_f16({bytes.x, bytes.y});
      *reinterpret_cast<uint4*>(to[i] + group * 1024 + high) = fp8_to_f16({bytes.z, bytes.w});
    };
    uint4 next[2] = {load(0, 0), load(1, 0)};
#pragma unroll
    for (int group = 0; group < 15; group += kConverters) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 bytes = next[i];
        if (group < 12) next[i] = load(i, group + kConverters);
        store(i, group, bytes);
      }
    }
    if (warp < 2) store(0, 15, load(0, 15));
  }

  __device__ __forceinline__ void operator()(const PrefillWork& work) {
    static_assert(Smem::kRawStages == 2 && Smem::kStages == 4);
    for (int tile = work.first_tile; tile < work.end_tile; ++tile, ++round) {
      // Two loads a turn: most of where they lie is then known to the compiler.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Stage<2> from{i, round & 1};
        const Stage<4> to{static_cast<int>(round % 2 * 2) + i, round >> 1 & 1};
        smem.raw_ring.wait_full(from);
        smem.ring.wait_empty(to);
        convert(smem.raw[from.index], smem.kv[to.index]);
        ptx::fence_proxy_async();
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
          ptx::mbarrier_arrive(&smem.ring.full[to.index]);
          smem.raw_ring.release(from.index);
        }
      }
    }
  }
};

// The 16 rows of Q of consumer warp `warp` become f16 in place, each times a power of two of its
// own. `undo` is the inverse for rows lane / 4 and lane / 4 + 8.
__device__ __forceinline__ void queries_to_f16(char (&q)[2][kHalfTile], int warp,
                                               float (&undo)[2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    // A lane has a quarter of row lane % 8: eight lanes then share no bank.
    const uint32_t quarter = (warp * 16 + h * 8 + lane % 8) * 128 + lane / 8 % 2 * 64;
    const auto at = [&](int i) {
      return reinterpret_cast<uint4*>(q[lane / 16] + swizzle_128(quarter + i * 16));
    };
    uint4 raw[4];
    uint32_t amax = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      raw[i] = *at(i);
      amax = max(amax, amax_bits(raw[i]));
    }
    amax = max(amax, __shfl_xor_sync(0xffffffff, amax, 8));
    amax = max(amax, __shfl_xor_sync(0xffffffff, amax, 16));
    const PowerOfTwo range = f16_range(amax);
#pragma unroll
    for (int i = 0; i < 4; ++i) *at(i) = bf16_to_f16(raw[i], range.up);
    undo[h] = __shfl_sync(0xffffffff, range.down, lane / 4);
  }
}

}  // namespace l4k
