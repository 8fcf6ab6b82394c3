// out = softmax(scale * q k^T) v, q the last tokens of each sequence, k and v in pages.
//
//   warps 4-7: page numbers -> cp.async       warps 0-3: 16 rows x blocks of 16 keys each
//   wait empty -> K tile, V tile         ==>  wait full -> mma, softmax, mma -> release -> ...
//                                             -> merge warps -> result, or partial result
//
// barrier    arrives                          waits       promises
// full[s]    copies of 128 threads            consumers   stage s holds K or V of one tile
// empty[s]   one lane of each consumer warp   producers   nobody reads stage s any more
// named 1    consumers                        themselves  states, exchanged sums, the flag
//
// `Tokens` says where queries and keys are: in memory, or for flash_decode_append, which rotates and
// stores them first, in shared memory (append.cuh).
//
// Persistent: CTA c computes the splits from the one on that the plan gives it (plan.h), and producers
// run ahead into the next split. The CTA that leaves an item's last partial result combines them, in
// the order of the splits (combine.cuh). See docs/kernels/flash_decode.md.
//
// Where the plan is settled, all that this step does not write is there before the launch before has
// ended: producers begin at once and wait only for keys of new tokens, consumers wait for q.
#pragma once
#include "kernels/flash_decode/attend.cuh"
#include "kernels/flash_decode/combine.cuh"
#include "kernels/flash_decode/load.cuh"
#include "tile/report.cuh"

namespace l4k {

// Consumer warps share the rows of an item first, then the keys of a tile.
struct WarpShare {
  int row_warps = 1, key_warps = kDecodeConsumers;
  int row_warp, key_warp;  // this one's

  __device__ __forceinline__ explicit WarpShare(int rows) {
    while (row_warps * 16 < rows) row_warps *= 2, key_warps /= 2;
    row_warp = threadIdx.x / 32 % row_warps;
    key_warp = threadIdx.x / 32 / row_warps;
  }
};

// The keys that a warp's 16 rows see, in 32 bits: lengths fit.
struct WarpKeys {
  TileSpan any, all;  // those that some row sees, and those that all rows see
  TileSpan seen[2];   // by the lane's rows

  __device__ __forceinline__ WarpKeys(const DecodeItem& item, int first_row) {
    const FlashDecodeParams& p = item.p;
    const int64_t position = item.work.sequence.first_position;
    const auto narrow = [](Span span) {
      return TileSpan{static_cast<int>(span.first), static_cast<int>(span.end)};
    };
    Span queries{0, 0};
    if (first_row < item.end_row())
      queries = {position + first_row / p.group,
                 position + min(first_row + 15, item.end_row() - 1) / p.group + 1};
    any = narrow(keys_of_any(queries, p.chunk));
    all = narrow(keys_of_all(queries, p.chunk));
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + threadIdx.x % 32 / 4 + 8 * half;
      seen[half] = narrow(visible_keys(position + row / p.group, p.chunk));
    }
  }
};

// Queries in memory, and all keys in the cache.
struct StoredTokens {
  static constexpr bool kAppends = false;

  // By all consumer warps before a split; true if a token is bad.
  __device__ __forceinline__ bool prepare(const DecodeItem&) { return false; }

  __device__ __forceinline__ const __nv_bfloat16* query(const DecodeItem& item, int row) const {
    const FlashDecodeParams& p = item.p;
    return static_cast<const __nv_bfloat16*>(p.q) + item.work.b * p.q_batch_stride +
           row / p.group * p.q_token_stride +
           (item.kv_head * p.group + row % p.group) * p.q_head_stride;
  }

  // Where a key, or its value, is in shared memory; it has a place in the ring.
  __device__ __forceinline__ uint32_t row_of(int, bool, uint32_t in_ring) const { return in_ring; }
};

// Whether a page does not exist in which a split has keys of the cache.
template <bool kAppends>
__device__ __forceinline__ bool misses_page(const DecodeItem& item) {
  const FlashDecodeParams& p = item.p;
  const DecodeSequence& sequence = item.work.sequence;
  const DecodeSplit split = item.work.split();
  const int first = max(sequence.first_key, split.first_tile * kDecodeTile);
  const int stored = kAppends ? sequence.first_position : sequence.end_key(p.tokens);
  const int64_t end = min(int64_t{stored}, int64_t{split.first_tile + split.tiles} * kDecodeTile);
  if (first >= end) return false;
  const int last = p.page_blocks.quotient(static_cast<uint32_t>(end - 1) / kDecodeKeyBlock);
  const int* table = p.block_table + item.work.b * p.table_stride;
  bool missing = false;
#pragma unroll 4
  for (int i = p.page_blocks.quotient(first / kDecodeKeyBlock) + threadIdx.x % 32; i <= last;
       i += 32)
    missing |= static_cast<uint32_t>(table[i]) >= static_cast<uint32_t>(p.num_pages);
  return __any_sync(0xffffffff, missing);
}

// True, and reported, if the item's sequence has no result.
template <bool kAppends>
__device__ __forceinline__ bool is_bad(const DecodeItem& item, const DecodeShape& shape) {
  const int planned = item.p.plan[kDecodeLengths + item.work.b];
  const bool stale = item.p.seqlens_k[item.work.b] != planned;
  const bool fits = decode_length_fits(shape, planned), missing = misses_page<kAppends>(item);
  if (threadIdx.x == 0) {
    if (stale) report_error(item.p.error, DeviceError::kFlashDecodePlan);
    if (!fits) report_error(item.p.error, DeviceError::kFlashDecodeSeqlens);
    if (missing) report_error(item.p.error, DeviceError::kFlashDecodeBlockTable);
  }
  return stale || !fits || missing;
}

// The tiles of a split, as they come through the ring.
template <bool kFp8, typename Tokens>
__device__ __forceinline__ void attend_split(Attend<kFp8>& attend, const Tokens& tokens,
                                             const DecodeSplit& split, const WarpKeys& visible,
                                             const WarpShare& share, DecodeSmem<kFp8>& smem,
                                             Stage<DecodeSmem<kFp8>::kStages>& stage) {
  constexpr int kRowBytes = DecodeSmem<kFp8>::kRowBytes;
  const int key_row = Attend<kFp8>::key_row(), value_row = Attend<kFp8>::value_row();
#pragma unroll 1
  for (int tile = split.first_tile; tile < split.first_tile + split.tiles; ++tile) {
    const auto keys = stage;
    stage.advance();
    const auto values = stage;
    stage.advance();
    smem.pipeline.wait_full(keys);
#pragma unroll 1
    for (int block = share.key_warp; block < kDecodeKeyBlocks; block += share.key_warps) {
      const int key = tile * kDecodeTile + block * kDecodeKeyBlock;
      if (key >= visible.any.end || key <= visible.any.first - kDecodeKeyBlock) continue;
      float s[2][4];
      uint32_t w[4];
      const uint32_t key_block =
          ptx::smem_address(smem.ring[keys.index]) + block * kDecodeKeyBlock * kRowBytes;
      attend.scores(tokens.row_of(key + key_row, false, key_block + key_row * kRowBytes), s);
      if (key < visible.all.first || key > visible.all.end - kDecodeKeyBlock)
        attend.mask(visible.seen, key, s);
      attend.weights(s, w);
      smem.pipeline.wait_full(values);
      const uint32_t value_block =
          ptx::smem_address(smem.ring[values.index]) + block * kDecodeKeyBlock * kRowBytes;
      attend.add_values(tokens.row_of(key + value_row, true, value_block + value_row * kRowBytes),
                        w);
    }
    smem.pipeline.wait_full(values);  // also without a key block: arrivals must not run ahead
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      smem.pipeline.release(keys.index);
      smem.pipeline.release(values.index);
    }
  }
}

// What a warp has after merging: the result where the item is one split, else a partial result.
template <bool kFp8>
__device__ __forceinline__ void store(const Attend<kFp8>& attend, const DecodeItem& item,
                                      const WarpShare& share, bool bad) {
  const DecodeWorkspace& work = item.workspace;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = lane % 4;
  const int columns = kDecodeColumns * share.row_warps / kDecodeConsumers;
  const int first_column = Attend<kFp8>::first_column(warp, share.row_warps);
  const bool whole = item.splits() == 1, writes_state = share.key_warp == 0 && c == 0;
  const int64_t slot = whole ? 0 : item.slot(item.work.k);
  const float v_scale = item.v_scale();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = share.row_warp * 16 + lane / 4 + 8 * half;
    if (item.block_row + r >= item.end_row()) continue;
    const DecodeRow row = item.row(r);
    const bool none = bad || !row.sees;
    const float factor = v_scale / attend.sum[half];
    float* partial = work.values + (slot * work.rows + r) * kDecodeHeadDim;
#pragma unroll
    for (int t = 0; t < kDecodeColumns; t += 2) {
      if (t >= columns) break;
      const float (&a)[4] = attend.acc[t], (&b)[4] = attend.acc[t + 1];
      const int column = (first_column + t) * 8 + (kFp8 ? 4 : 2) * c, i = 2 * half;
      // e4m3: even dimensions in the first tile, odd ones in the second.
      const float2 low = kFp8 ? float2{a[i], b[i]} : float2{a[i], a[i + 1]};
      const float2 high = kFp8 ? float2{a[i + 1], b[i + 1]} : float2{b[i], b[i + 1]};
      const int next = column + (kFp8 ? 2 : 8);
      if (whole) {
        const auto rounded = [&](float2 v) {
          return none ? __nv_bfloat162{} : __floats2bfloat162_rn(v.x * factor, v.y * factor);
        };
        *reinterpret_cast<__nv_bfloat162*>(row.out + column) = rounded(low);
        *reinterpret_cast<__nv_bfloat162*>(row.out + next) = rounded(high);
      } else {
        *reinterpret_cast<float2*>(partial + column) = low;
        *reinterpret_cast<float2*>(partial + next) = high;
      }
    }
    if (!writes_state) continue;
    const float maximum = attend.maximum[half], sum = attend.sum[half];
    if (whole) *row.lse = none ? kMinusInfinity : natural_lse(maximum, sum);
    else work.states[slot * work.rows + r] = {maximum, bad ? -1.f : sum};
  }
}

template <bool kFp8, typename Tokens>
__device__ __forceinline__ void consume(const FlashDecodeParams& p, const DecodeShape& shape,
                                        DecodeSmem<kFp8>& smem, Tokens& tokens) {
  const DecodeWorkspace workspace(p, shape.grid);
  const WarpShare share(workspace.rows);
  Stage<DecodeSmem<kFp8>::kStages> stage;
  DecodePlace& place = smem.place[threadIdx.x / 32];
  const DecodeWork& work = place.work;
  for (; !work.done(shape, place.splitting); next_split(p, shape, place)) {
    const DecodeItem item{.p = p,
                          .workspace = workspace,
                          .splitting = place.splitting,
                          .work = work,
                          .kv_head = work.head,
                          .block_row = work.block * kDecodeRows};
    bool bad = tokens.prepare(item);
    const int first_row = item.block_row + share.row_warp * 16;
    const WarpKeys visible(item, first_row);
    Attend<kFp8> attend;
    attend.load_queries(item, tokens, first_row);
    attend.clear();
    bad |= is_bad<Tokens::kAppends>(item, shape);
    attend_split(attend, tokens, work.split(), visible, share, smem, stage);
    attend.merge(smem, share.row_warps);
    store(attend, item, share, bad);
    if (item.splits() > 1) combine(item, smem);
  }
}

template <bool kFp8, typename Tokens>
__device__ __forceinline__ void decode(const FlashDecodeParams& p, const DecodeLaunch& launch,
                                       DecodeSmem<kFp8>& smem, Tokens tokens) {
  if (threadIdx.x == 0) smem.pipeline.init(kDecodeConsumers, kDecodeProducers * 32);
  if (!p.settled) ptx::grid_dependency_wait();
  // No way out before registers change hands: the compiler would give everyone the fewest.
  const bool is_ours = __syncthreads_and(take_place(p, launch, smem));
  if (threadIdx.x / 32 < kDecodeConsumers) {
    ptx::registers_increase<kDecodeConsumerRegisters>();
    ptx::grid_dependency_wait();  // for q, and for the memory of results
    if (is_ours) consume(p, launch.shape, smem, tokens);
    else refuse_plan(p);
  } else {
    ptx::registers_decrease<kDecodeProducerRegisters>();
    if (is_ours) DecodeProducer<kFp8, Tokens::kAppends>(p, smem).run(launch.shape);
  }
}

template <bool kFp8>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    flash_decode_kernel(const __grid_constant__ FlashDecodeParams p,
                        const __grid_constant__ DecodeLaunch launch) {
  extern __shared__ __align__(1024) char raw[];
  decode(p, launch, *reinterpret_cast<DecodeSmem<kFp8>*>(raw), StoredTokens{});
}

}  // namespace l4k
