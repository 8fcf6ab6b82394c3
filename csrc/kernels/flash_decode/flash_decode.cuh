// out = softmax(scale * q k^T) v, q the last tokens of each sequence, k and v in pages.
//
//   warps 8-11: page numbers -> cp.async      warps 0-7: 16 rows x blocks of 16 keys each
//   wait empty -> K tile, V tile         ==>  wait full -> mma, softmax, mma -> release -> ...
//                                             -> merge warps -> result, or partial result
//
// barrier    arrives                                waits       promises
// full[s]    copies of 128 threads, 4 flag writers  consumers   stage s holds K or V of one tile
// empty[s]   one lane of each consumer warp         producers   nobody reads stage s any more
// named 1    consumers                              themselves  states, exchanged sums, the flag
//
// `Tokens` says where queries and keys are: in memory, or for flash_decode_append, which rotates and
// stores them first, in shared memory (append.cuh).
//
// Persistent: CTA c computes the splits that schedule.h gives it; every CTA computes the schedule
// from the lengths in device memory, and producers run ahead into the next split. The CTA that
// leaves an item's last partial result combines them, in the order of the splits (combine.cuh). See
// docs/kernels/flash_decode.md.
#pragma once
#include "kernels/flash_decode/attend.cuh"
#include "kernels/flash_decode/combine.cuh"
#include "kernels/flash_decode/load.cuh"

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

// The tiles of a split, as they come through the ring; true if a page of one does not exist.
template <bool kFp8, typename Tokens>
__device__ __forceinline__ bool attend_split(Attend<kFp8>& attend, const Tokens& tokens,
                                             const DecodeSplit& split, const WarpKeys& visible,
                                             const WarpShare& share, DecodeSmem<kFp8>& smem,
                                             Stage<DecodeSmem<kFp8>::kStages>& stage) {
  constexpr int kRowBytes = DecodeSmem<kFp8>::kRowBytes;
  const int key_row = Attend<kFp8>::key_row(), value_row = Attend<kFp8>::value_row();
  uint32_t bad = 0;
#pragma unroll 1
  for (int tile = split.first_tile; tile < split.first_tile + split.tiles; ++tile) {
    const auto keys = stage;
    stage.advance();
    const auto values = stage;
    stage.advance();
    smem.pipeline.wait_full(keys);
    for (uint32_t flag : smem.bad[keys.index]) bad |= flag;
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
  return bad != 0;
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
  const int row_blocks = decode_row_blocks(p.tokens * p.group);
  const DecodeWorkspace workspace(p, shape.grid);
  const WarpShare share(workspace.rows);
  Stage<DecodeSmem<kFp8>::kStages> stage;
  const DecodeWork& work = smem.work[threadIdx.x / 32];
  for (; !work.done(shape, smem.schedule); next_split(p, shape, smem)) {
    const DecodeItem item{.p = p,
                          .workspace = workspace,
                          .schedule = smem.schedule,
                          .work = work,
                          .kv_head = work.item / row_blocks,
                          .block_row = work.item % row_blocks * kDecodeRows};
    bool bad = tokens.prepare(item);
    const int first_row = item.block_row + share.row_warp * 16;
    const WarpKeys visible(item, first_row);
    Attend<kFp8> attend;
    attend.load_queries(item, tokens, first_row);
    attend.clear();
    bad |= attend_split(attend, tokens, work.split(), visible, share, smem, stage);
    attend.merge(smem, share.row_warps);
    store(attend, item, share, bad);
    if (item.splits() > 1) combine(item, smem);
  }
}

template <bool kFp8, typename Tokens>
__device__ __forceinline__ void decode(const FlashDecodeParams& p, const DecodeShape& shape,
                                       DecodeSmem<kFp8>& smem, Tokens tokens) {
  if (threadIdx.x == 0)
    smem.pipeline.init(kDecodeConsumers, kDecodeProducers * 32 + kDecodeProducers);
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  plan_decode(p, shape, smem);
  if (threadIdx.x / 32 < kDecodeConsumers) {
    ptx::registers_increase<216>();
    consume(p, shape, smem, tokens);
  } else {
    ptx::registers_decrease<72>();
    DecodeProducer<kFp8, Tokens::kAppends>(p, smem).run(shape);
  }
}

template <bool kFp8>
__global__ void __launch_bounds__(kDecodeWarps * 32, 1)
    flash_decode_kernel(const __grid_constant__ FlashDecodeParams p,
                        const __grid_constant__ DecodeShape shape) {
  extern __shared__ __align__(1024) char raw[];
  decode(p, shape, *reinterpret_cast<DecodeSmem<kFp8>*>(raw), StoredTokens{});
}

}  // namespace l4k
