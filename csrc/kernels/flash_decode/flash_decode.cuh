// out = softmax(scale * q k^T) v, q the last tokens of each sequence, k and v in pages.
//
//   warps 8-11: page numbers -> cp.async      warps 0-7: 16 rows x granules of 16 keys each
//   wait empty -> K tile, V tile         ==>  wait full -> mma, softmax, mma -> release -> ...
//                                             -> merge warps -> result, or partial result
//
// barrier    arrives                                waits       promises
// full[s]    copies of 128 threads, 4 flag writers  consumers   stage s holds K or V of one tile
// empty[s]   one lane of each consumer warp         producers   nobody reads stage s any more
// named 1    consumers                              themselves  states, exchanged sums, the flag
//
// Persistent: CTA c walks the pieces that split.h gives it, computed by every CTA from the lengths
// in device memory; producers run ahead into the next piece. The CTA that leaves an item's last
// partial result adds them up in the order of the pieces. See docs/kernels/flash_decode.md.
#pragma once
#include "kernels/flash_decode/attend.cuh"

namespace l4k {

// Partial results of items that are cut: sums of values, then maximum and sum of weights, by slot
// and row; then a counter per slot, used by the item whose first piece has the slot.
struct DecodeWorkspace {
  float* values;
  float2* states;
  unsigned long long* counters;
  int rows;

  __device__ __forceinline__ DecodeWorkspace(const FlashDecodeParams& p, int grid)
      : values(p.partials), rows(min(p.tokens * p.group, kDecodeRows)) {
    const int64_t slots = int64_t{kDecodeSlotsPerCta} * grid;
    states = reinterpret_cast<float2*>(values + slots * rows * kDecodeHeadDim);
    counters = reinterpret_cast<unsigned long long*>(states + slots * rows);
  }
  static int64_t words(int rows, int grid) {
    const int64_t slots = int64_t{kDecodeSlotsPerCta} * grid;
    return slots * (min(rows, kDecodeRows) * (kDecodeHeadDim + 2) + 2);
  }
};

// Counts finished partial results; true for the last. The workspace starts as anything: a count is
// one only beside the launch's own nonce, and the last arrival clears it for the next replay.
__device__ __forceinline__ bool arrive_last(unsigned long long* counter, uint64_t nonce,
                                            int expected_count) {
  __threadfence();  // partial results before the count
  unsigned long long seen = __ldcg(counter), expected, count;
  do {
    expected = seen;
    count = (expected >> 16 == nonce ? expected & 0xffff : 0) + 1;
    seen = atomicCAS(counter, expected, static_cast<unsigned long long>(nonce << 16 | count));
  } while (seen != expected);
  if (count != static_cast<unsigned long long>(expected_count)) return false;
  *counter = 0;
  __threadfence();  // the count before the others' partial results
  return true;
}

// Where a row of an item lives in the results, and whether its query sees a key at all. Keys of
// weight 0 alone are another thing, and give NaN.
struct DecodeRow {
  __nv_bfloat16* out;
  float* lse;
  bool sees;

  __device__ __forceinline__ DecodeRow(const FlashDecodeParams& p, const DecodeWalk& walk,
                                       int kv_head, int row) {
    const int64_t heads = int64_t{p.kv_heads} * p.group, b = walk.b;
    const int token = row / p.group, head = kv_head * p.group + row % p.group;
    out = static_cast<__nv_bfloat16*>(p.out) +
          ((b * p.tokens + token) * heads + head) * kDecodeHeadDim;
    lse = p.lse + (b * heads + head) * p.tokens + token;
    sees = walk.sequence.first_position + token >= 0;
  }
};

__device__ __forceinline__ float natural_lse(float maximum, float sum) {
  return (maximum + log2f(sum)) * 0.6931471805599453f;
}

// Adds up partial results of an item, `count` (at most 32) of them from piece `first` on and `step`
// apart, row by row: lane i of a warp weighs the i-th, then all lanes add up four columns each, in
// order. The sum takes the place of the first, or is the result.
__device__ __forceinline__ void add_pieces(const FlashDecodeParams& p, const DecodeWorkspace& work,
                                           const DecodeLine& line, const DecodeWalk& walk,
                                           int kv_head, int block_row, int first, int step,
                                           int count, bool is_result) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int end = min(p.tokens * p.group - block_row, kDecodeRows);
  const int64_t slot = lane < count ? walk.slot(line, first + lane * step) : 0;
  for (int r = warp; r < end; r += kDecodeConsumers) {
    const int64_t own = slot * work.rows + r;
    const float2 state = lane < count ? __ldcg(work.states + own) : float2{kMinusInfinity, 0.f};
    const float maximum = warp_max(state.x);
    const float weight = ptx::exp2_approx(state.x - (maximum == kMinusInfinity ? 0.f : maximum));
    const float sum = warp_sum(state.y * weight);
    const bool bad = __any_sync(0xffffffff, state.y < 0.f);
    float4 total{0.f, 0.f, 0.f, 0.f};
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float w = __shfl_sync(0xffffffff, weight, i);
      const float* from = work.values + __shfl_sync(0xffffffff, own, i) * kDecodeHeadDim;
      const float4 v = __ldcg(reinterpret_cast<const float4*>(from) + lane);
      total.x += w * v.x, total.y += w * v.y, total.z += w * v.z, total.w += w * v.w;
    }
    if (!is_result) {  // `own` of lane 0 is the first's
      float* to = work.values + __shfl_sync(0xffffffff, own, 0) * kDecodeHeadDim;
      reinterpret_cast<float4*>(to)[lane] = total;
      if (lane == 0) work.states[own] = {maximum, bad ? -1.f : sum};
      continue;
    }
    const DecodeRow row(p, walk, kv_head, block_row + r);
    const bool none = bad || !row.sees;
    const float factor = (p.v_scale == nullptr ? 1.f : p.v_scale[kv_head]) / sum;
    const __nv_bfloat162 halves[2] = {
        __floats2bfloat162_rn(none ? 0.f : total.x * factor, none ? 0.f : total.y * factor),
        __floats2bfloat162_rn(none ? 0.f : total.z * factor, none ? 0.f : total.w * factor)};
    *reinterpret_cast<uint2*>(row.out + 4 * lane) = *reinterpret_cast<const uint2*>(halves);
    if (lane == 0) *row.lse = none ? kMinusInfinity : natural_lse(maximum, sum);
  }
}

// What a warp has after merging: the result where the item is one piece, else a partial result.
template <bool kFp8>
__device__ __forceinline__ void store(const Attend<kFp8>& attend, const FlashDecodeParams& p,
                                      const DecodeWorkspace& work, const DecodeLine& line,
                                      const DecodeWalk& walk, int kv_head, int block_row,
                                      int row_warps, bool bad) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = lane % 4;
  const int columns = kDecodeColumns * row_warps / kDecodeConsumers;
  const int first_column = Attend<kFp8>::first_column(warp, row_warps);
  const bool whole = walk.cut.pieces == 1, writes_state = warp < row_warps && c == 0;
  const int64_t slot = whole ? 0 : walk.slot(line, walk.k);
  const float v_scale = p.v_scale == nullptr ? 1.f : p.v_scale[kv_head];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp % row_warps * 16 + lane / 4 + 8 * half;
    if (block_row + r >= p.tokens * p.group) continue;
    const DecodeRow row(p, walk, kv_head, block_row + r);
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

template <bool kFp8>
__device__ __forceinline__ void attend_tiles(const FlashDecodeParams& p, const DecodeShape& shape,
                                             DecodeSmem<kFp8>& smem) {
  using Smem = DecodeSmem<kFp8>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rows = p.tokens * p.group, row_blocks = decode_row_blocks(rows);
  const DecodeWorkspace work(p, shape.grid);
  // Warps share the rows of an item first, then the keys of a tile.
  int row_warps = 1, key_warps = kDecodeConsumers;
  while (row_warps * 16 < work.rows) row_warps *= 2, key_warps /= 2;
  const int key_warp = warp / row_warps;
  Stage<Smem::kStages> stage;

  const DecodeWalk& walk = smem.walk[warp];
  const DecodeLine& line = smem.line;
  for (; !walk.done(shape, line); next_piece(p, shape, smem)) {
    const int kv_head = walk.head / row_blocks;
    const int block_row = walk.head % row_blocks * kDecodeRows;
    const int first_row = block_row + warp % row_warps * 16;
    const int64_t position = walk.sequence.first_position;
    // Keys fit 32 bits: lengths do.
    const auto narrow = [](Span span) {
      return TileSpan{static_cast<int>(span.first), static_cast<int>(span.end)};
    };
    Span queries{0, 0};
    if (first_row < rows)
      queries = {position + first_row / p.group,
                 position + min(first_row + 15, rows - 1) / p.group + 1};
    const TileSpan any = narrow(keys_of_any(queries, p.chunk));
    const TileSpan all = narrow(keys_of_all(queries, p.chunk));
    TileSpan seen[2];  // by the lane's rows
    for (int half = 0; half < 2; ++half)
      seen[half] =
          narrow(visible_keys(position + (first_row + lane / 4 + 8 * half) / p.group, p.chunk));
    Attend<kFp8> attend;
    attend.load_queries(p, walk.b, kv_head, first_row);
    attend.clear();
    uint32_t bad = 0;

    const Piece piece = walk.piece();
#pragma unroll 1
    for (int tile = piece.first_tile; tile < piece.first_tile + piece.tiles; ++tile) {
      const Stage<Smem::kStages> keys = stage;
      stage.advance();
      const Stage<Smem::kStages> values = stage;
      stage.advance();
      smem.pipeline.wait_full(keys);
      for (uint32_t flag : smem.bad[keys.index]) bad |= flag;
#pragma unroll 1
      for (int g = key_warp; g < kDecodeGranules; g += key_warps) {
        const int key = tile * kDecodeTile + g * kDecodeGranule;
        if (key >= any.end || key <= any.first - kDecodeGranule) continue;
        float s[2][4];
        uint32_t w[4];
        const int offset = g * kDecodeGranule * Smem::kRowBytes;
        attend.scores(ptx::smem_address(smem.ring[keys.index]) + offset, s);
        if (key < all.first || key > all.end - kDecodeGranule) attend.mask(seen, key, s);
        attend.weights(s, w);
        smem.pipeline.wait_full(values);
        attend.add_values(ptx::smem_address(smem.ring[values.index]) + offset, w);
      }
      smem.pipeline.wait_full(values);  // also without a granule: arrivals must not run ahead
      __syncwarp();
      if (lane == 0) {
        smem.pipeline.release(keys.index);
        smem.pipeline.release(values.index);
      }
    }
    attend.merge(smem, row_warps);
    store(attend, p, work, line, walk, kv_head, block_row, row_warps, bad != 0);
    const int pieces = walk.cut.pieces, fan = decode_fan(pieces);
    if (pieces == 1) continue;
    // Counters live at slots of pieces that have none of their own: a group's first, and for the
    // groups the second piece.
    const auto is_last = [&](int counter, int count) {
      attend.consumers_sync();  // all partial results before the count
      if (threadIdx.x == 0)
        smem.is_last = arrive_last(work.counters + walk.slot(line, counter), p.nonce, count);
      attend.consumers_sync();
      return smem.is_last;
    };
    const int first = walk.k / fan * fan, count = min(pieces - first, fan);
    if (!is_last(first, count)) continue;
    add_pieces(p, work, line, walk, kv_head, block_row, first, 1, count, pieces <= fan);
    const int groups = ceil_div(pieces, fan);
    if (groups > 1 && is_last(1, groups))
      add_pieces(p, work, line, walk, kv_head, block_row, 0, fan, groups, true);
  }
}

template <bool kFp8>
__global__ void __launch_bounds__(kDecodeWarps * 32, 1)
    flash_decode_kernel(const __grid_constant__ FlashDecodeParams p,
                        const __grid_constant__ DecodeShape shape) {
  extern __shared__ __align__(1024) char raw[];
  auto& smem = *reinterpret_cast<DecodeSmem<kFp8>*>(raw);
  if (threadIdx.x == 0)
    smem.pipeline.init(kDecodeConsumers, kDecodeProducers * 32 + kDecodeProducers);
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  plan_decode(p, shape, smem);
  if (threadIdx.x / 32 < kDecodeConsumers) {
    ptx::registers_increase<216>();
    attend_tiles(p, shape, smem);
  } else {
    ptx::registers_decrease<72>();
    load_tiles(p, shape, smem);
  }
}

}  // namespace l4k
