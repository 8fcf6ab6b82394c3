// flash_decode_append: q, and K and V of the new tokens, from the fused QKV projection.
//
// Before a split the consumer warps rotate, normalise and scale the item's queries, and those new
// tokens whose keys lie in the split's tiles, half a warp for each head (tile/rope.cuh). Queries and
// new keys and values stay in shared memory, and attention reads them there: no row of the cache is
// read in the launch that writes it, so CTAs need no order. The first block of rows of a KV head writes
// its keys and values to the cache, for the launches that follow.
#pragma once
#include "kernels/flash_decode/flash_decode.cuh"
#include "tile/report.cuh"
#include "tile/rope.cuh"

namespace l4k {

template <bool kFp8>
struct AppendSmem : DecodeSmem<kFp8> {
  using DecodeSmem<kFp8>::kRowBytes;
  // Rows of queries begin in other banks, for loads of four bytes or of eight.
  static constexpr int kQueryPitch = kDecodeHeadDim + (kFp8 ? 16 : 8);

  // Keys and values of the new tokens, their chunks permuted as in the ring.
  alignas(16) char fresh[2][kDecodeTokens][kRowBytes];
  bool bad_token[kDecodeConsumers];  // a warp has met one

  // Where the warps' sums will be: queries are in registers before.
  __device__ __forceinline__ __nv_bfloat16* query(int row) {
    static_assert(kDecodeRows * kQueryPitch * sizeof(__nv_bfloat16) <=
                  sizeof(this->wide) + sizeof(this->narrow));
    return reinterpret_cast<__nv_bfloat16*>(this->wide) + row * kQueryPitch;
  }
};

// A head of a new token: of q, K or V.
struct NewHead {
  bool exists, is_query, is_value;
  int token;   // of the sequence
  int row;     // of q, in the item
  int column;  // among the heads of qkv
};

// Where the key of a new token belongs in the cache, and whether it is written there.
struct NewKey {
  int64_t place;  // negative: nowhere
  bool is_stored;
};

template <bool kFp8>
struct NewTokens {
  static constexpr bool kAppends = true;

  const FlashDecodeAppendParams& p;
  AppendSmem<kFp8>& smem;
  int first_key = 0;  // of the new tokens of the item

  // Each half of a warp takes one head after the other.
  __device__ __forceinline__ bool prepare(const DecodeItem& item) {
    const int warp = threadIdx.x / 32, half = threadIdx.x % 32 / kHeadLanes;
    const int rows = min(item.end_row() - item.block_row, kDecodeRows);
    const Span tokens = item.work.new_tokens(p.attention.tokens);
    const int first_token = static_cast<int>(tokens.first);
    const int heads = rows + 2 * static_cast<int>(tokens.end - tokens.first);
    first_key = item.work.sequence.first_position;
    bool bad = false;
    decode_consumers_sync();  // nobody reads any more what the split before has left here
    for (int i = 2 * warp; i < heads; i += 2 * kDecodeConsumers)
      bad |= prepare_head(item, head_of(item, i + half, heads, rows, first_token));
    bad = __any_sync(0xffffffff, bad);
    if (threadIdx.x % 32 == 0) smem.bad_token[warp] = bad;
    decode_consumers_sync();  // queries, keys and values before they are read
    for (bool other : smem.bad_token) bad |= other;
    return bad;
  }

  __device__ __forceinline__ const __nv_bfloat16* query(const DecodeItem& item, int row) const {
    return smem.query(row - item.block_row);
  }

  __device__ __forceinline__ uint32_t row_of(int key, bool is_value, uint32_t in_ring) const {
    const int token = key - first_key;
    const bool is_new = token >= 0 && token < p.attention.tokens;
    return is_new ? ptx::smem_address(smem.fresh[is_value][token]) : in_ring;
  }

 private:
  // The queries of the item, then key and value of each new token.
  __device__ __forceinline__ NewHead head_of(const DecodeItem& item, int i, int heads, int rows,
                                             int first_token) const {
    const FlashDecodeParams& a = p.attention;
    const bool is_query = i < rows, is_value = !is_query && (i - rows) % 2 == 1;
    const int row = item.block_row + i;
    return {.exists = i < heads,
            .is_query = is_query,
            .is_value = is_value,
            .token = is_query ? row / a.group : first_token + (i - rows) / 2,
            .row = i,
            .column = is_query ? item.kv_head * a.group + row % a.group
                               : a.kv_heads * (a.group + is_value) + item.kv_head};
  }

  // Reports and sets `bad` if the slot is not the place; a bad token is not written.
  __device__ __forceinline__ NewKey key_of(const DecodeItem& item, int token, int64_t slot,
                                           bool& bad) const {
    const FlashDecodeParams& a = p.attention;
    const int key = item.work.sequence.first_position + token;
    int64_t place = -1;
    if (key >= 0) {
      const int column = a.page_blocks.quotient(key / kDecodeKeyBlock);
      const int page = a.block_table[item.work.b * a.table_stride + column];
      if (page < 0 || page >= a.num_pages) report(DeviceError::kFlashDecodeBlockTable, bad);
      else place = int64_t{page - column} * a.page_size + key;
    }
    if (slot != -1 && slot != place && !bad) report(DeviceError::kFlashDecodeSlotMapping, bad);
    return {place, slot >= 0 && !bad};
  }

  __device__ __forceinline__ void report(DeviceError error, bool& bad) const {
    bad = true;
    if (threadIdx.x % kHeadLanes == 0) report_error(p.attention.error, error);
  }

  // True if the token is bad.
  __device__ __forceinline__ bool prepare_head(const DecodeItem& item, const NewHead& head) {
    const FlashDecodeParams& a = p.attention;
    const int lane = threadIdx.x % kHeadLanes;
    const int64_t t = int64_t{item.work.b} * a.tokens + head.token;
    const bool is_key = head.exists && !head.is_query;
    uint4 raw{};
    int64_t position = 0, slot = -1;
    if (head.exists) {
      raw = ptx::load_streaming(static_cast<const __nv_bfloat16*>(p.qkv) + t * p.qkv_stride +
                                head.column * kHeadDim + lane * kVector);
      position = p.positions[t];
      if (is_key) slot = p.slot_mapping[t];
    }
    bool bad = false;
    NewKey key{};
    if (is_key) {
      if (position < 0) report(DeviceError::kFlashDecodePositions, bad);
      key = key_of(item, head.token, slot, bad);
    }
    const bool rotates = p.rule.cos_sin != nullptr && head.exists && !head.is_value;
    RopeAngles angles{};
    if (rotates) angles = load_angles(p.rule, max(position, int64_t{0}));
    const float factor = head.is_query ? temperature(p.rule, position) : 1.f;
    float x[kVector];
    unpack(raw, x);
    finish_head(p.rule, angles, rotates, head.is_value, factor, x);
    if (head.exists && head.is_query)
      ptx::store_shared(smem.query(head.row) + lane * kVector, pack(x));
    if (is_key) keep(item, head, key, bad, x);
    return bad;
  }

  // To shared memory, and to the cache unless it has the key already: then from there.
  __device__ __forceinline__ void keep(const DecodeItem& item, const NewHead& head,
                                       const NewKey& key, bool bad, const float (&x)[kVector]) {
    using Vector = CacheVector<kFp8>;
    const FlashDecodeParams& a = p.attention;
    const int lane = threadIdx.x % kHeadLanes, at = lane * static_cast<int>(sizeof(Vector));
    auto* cache = static_cast<Vector*>(head.is_value ? p.v_cache : p.k_cache) +
                  (max(key.place, int64_t{0}) * a.kv_heads + item.kv_head) * kHeadLanes + lane;
    Vector vector = to_cache<kFp8>(x, head.is_value ? a.v_scale : a.k_scale, item.kv_head);
    if (key.is_stored) {
      if (item.block_row == 0) ptx::store_streaming(cache, vector);
    } else {
      vector = bad || key.place < 0 ? Vector{} : *cache;
    }
    const int chunk = at / 16 ^ ((first_key + head.token) & 7);  // the key may be negative
    ptx::store_shared(smem.fresh[head.is_value][head.token] + chunk * 16 + at % 16, vector);
  }
};

template <bool kFp8>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    flash_decode_append_kernel(const __grid_constant__ FlashDecodeAppendParams p,
                               const __grid_constant__ DecodeLaunch launch) {
  extern __shared__ __align__(1024) char raw[];
  auto& smem = *reinterpret_cast<AppendSmem<kFp8>*>(raw);
  decode<kFp8>(p.attention, launch, smem, NewTokens<kFp8>{p, smem});
}

}  // namespace l4k
