#include <atomic>
#include <random>

#include "bindings/arguments.h"
#include "kernels/flash_decode/flash_decode.h"
#include "kernels/flash_prefill/flash_prefill.h"
#include "kernels/merge_attention_states/merge_attention_states.h"

namespace l4k::binding {

namespace {

constexpr int64_t kMaxTokens = 16, kMaxGroup = 16, kHeadDim = 128;

// What both attention ops ask of their arguments; a page holds a multiple of `unit` keys.
#define L4K_CHECK_ATTENTION(num_heads, batch, unit)                                               \
  L4K_CHECK_DTYPE(q, BFloat16);                                                                   \
  L4K_CHECK_ROWS(q);                                                                              \
  L4K_CHECK_PAGED_CACHE(kHeadDim);                                                                \
  const int64_t pages = k_cache.size(0), page_size = k_cache.size(1), kv_heads = k_cache.size(2); \
  const bool fp8 = k_cache.scalar_type() == ScalarType::Float8_e4m3fn;                            \
  L4K_REQUIRE(kv_heads >= 1 && num_heads >= 1 && num_heads % kv_heads == 0 &&                     \
                  num_heads / kv_heads <= kMaxGroup,                                              \
              "expected 1 to ", kMaxGroup, " heads of q for each of the ", kv_heads,              \
              " heads of k_cache, got q ", describe(q));                                          \
  L4K_REQUIRE(page_size > 0 && page_size % unit == 0, "expected pages of a multiple of ", unit,   \
              " slots on CUDA, got ", page_size);                                                 \
  L4K_REQUIRE(pages > 0 && pages < int64_t{1} << 31,                                              \
              "expected k_cache to hold 1 to 2^31 - 1 pages, got ", pages);                       \
  L4K_CHECK_DTYPE(seqlens_k, Int);                                                                \
  L4K_CHECK_SHAPE(seqlens_k, batch);                                                              \
  L4K_CHECK_CONTIGUOUS(seqlens_k);                                                                \
  L4K_CHECK_DTYPE(block_table, Int);                                                              \
  L4K_CHECK_SHAPE(block_table, batch, -1);                                                        \
  L4K_REQUIRE(block_table.stride(1) == 1 || block_table.size(1) <= 1,                             \
              "expected the rows of block_table to be contiguous, got ", describe(block_table));  \
  L4K_REQUIRE(softmax_scale > 0, "expected softmax_scale to be positive, got ", softmax_scale);   \
  L4K_REQUIRE(chunk >= 0 && chunk < int64_t{1} << 31,                                             \
              "expected chunk to be 0 (off) or positive, got ", chunk)

// 48 bits that no other launch of this or another process on the device is likely to have.
uint64_t launch_nonce() {
  static std::random_device seed;
  static std::atomic<uint64_t> next = seed() | uint64_t{seed()} << 32;
  uint64_t z = next.fetch_add(0x9e3779b97f4a7c15);  // splitmix64
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) >> 16 | 1;
}

}  // namespace

std::tuple<Tensor, Tensor> flash_prefill(const Tensor& q, const Tensor& k_cache,
                                         const Tensor& v_cache, const Tensor& cu_seqlens_q,
                                         const Tensor& seqlens_k, const Tensor& block_table,
                                         double softmax_scale, int64_t max_seqlen_q, int64_t chunk,
                                         const std::optional<Tensor>& maybe_k_scale,
                                         const std::optional<Tensor>& maybe_v_scale) {
  L4K_CHECK_SHAPE(q, -1, -1, kHeadDim);
  L4K_CHECK_TABLE(cu_seqlens_q, Int, -1);
  const int64_t rows = q.size(0), num_heads = q.size(1), batch = cu_seqlens_q.size(0) - 1;
  L4K_REQUIRE(batch >= 0, "expected cu_seqlens_q to be [B + 1], got ", describe(cu_seqlens_q));
  L4K_CHECK_ATTENTION(num_heads, batch, 8);
  L4K_REQUIRE(rows < int64_t{1} << 31 && max_seqlen_q >= 0,
              "expected fewer than 2^31 rows of q and max_seqlen_q >= 0, got ", describe(q),
              " and ", max_seqlen_q);
  Device device(q);
  Tensor out = empty_like(q, {rows, num_heads, kHeadDim});
  Tensor lse = empty_like(q, {num_heads, rows}, ScalarType::Float);
  if (rows == 0) return {out, lse};
  FlashPrefillParams params{
      .rows = static_cast<int>(rows),
      .batch = static_cast<int>(batch),
      .num_heads = static_cast<int>(num_heads),
      .kv_heads = static_cast<int>(kv_heads),
      .num_pages = static_cast<int>(pages),
      .page_size = static_cast<int>(page_size),
      .max_pages = static_cast<int>(block_table.size(1)),
      // No sequence has more than all rows.
      .max_seqlen_q = static_cast<int>(max_seqlen_q < rows ? max_seqlen_q : rows),
      .chunk = chunk,
      .softmax_scale = static_cast<float>(softmax_scale),
      .fp8 = fp8,
      .q = pointer(q),
      .q_row_stride = rows > 1 ? q.stride(0) : num_heads * kHeadDim,
      .q_head_stride = num_heads > 1 ? q.stride(1) : kHeadDim,
      .k_cache = pointer(k_cache),
      .v_cache = pointer(v_cache),
      .cu_seqlens_q = pointer<int>(cu_seqlens_q),
      .seqlens_k = pointer<int>(seqlens_k),
      .block_table = pointer<int>(block_table),
      .table_stride = block_table.stride(0),
      .k_scale = optional_pointer<float>(maybe_k_scale),
      .v_scale = optional_pointer<float>(maybe_v_scale),
      .out = pointer(out),
      .lse = pointer<float>(lse),
      .error = error_word()};
  Tensor plan = workspace(q, flash_prefill_plan_words(params));
  params.plan = pointer<int>(plan);
  L4K_LAUNCH(l4k::flash_prefill(params, device.stream()));
  return {out, lse};
}

std::tuple<Tensor, Tensor> flash_decode(const Tensor& q, const Tensor& k_cache,
                                        const Tensor& v_cache, const Tensor& seqlens_k,
                                        const Tensor& block_table, double softmax_scale,
                                        int64_t chunk, const std::optional<Tensor>& maybe_k_scale,
                                        const std::optional<Tensor>& maybe_v_scale) {
  L4K_CHECK_SHAPE(q, -1, -1, -1, kHeadDim);
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2);
  L4K_REQUIRE(tokens >= 1 && tokens <= kMaxTokens, "expected 1 to ", kMaxTokens,
              " new tokens per sequence, got q ", describe(q));
  L4K_CHECK_ATTENTION(heads, batch, 16);
  Device device(q);
  Tensor out = empty_like(q, {batch, tokens, heads, kHeadDim});
  Tensor lse = empty_like(q, {batch, heads, tokens}, ScalarType::Float);
  if (batch == 0) return {out, lse};
  FlashDecodeParams params{.batch = static_cast<int>(batch),
                           .tokens = static_cast<int>(tokens),
                           .kv_heads = static_cast<int>(kv_heads),
                           .group = static_cast<int>(heads / kv_heads),
                           .chunk = static_cast<int>(chunk),
                           .num_pages = static_cast<int>(pages),
                           .page_size = static_cast<int>(page_size),
                           .max_pages = static_cast<int>(block_table.size(1)),
                           .q = pointer(q),
                           .q_batch_stride = q.stride(0),
                           .q_token_stride = q.stride(1),
                           .q_head_stride = q.stride(2),
                           .k_cache = pointer(k_cache),
                           .v_cache = pointer(v_cache),
                           .lengths = pointer<int>(seqlens_k),
                           .block_table = pointer<int>(block_table),
                           .table_stride = block_table.stride(0),
                           .k_scale = optional_pointer<float>(maybe_k_scale),
                           .v_scale = optional_pointer<float>(maybe_v_scale),
                           .out = pointer(out),
                           .lse = pointer<float>(lse),
                           .nonce = launch_nonce(),
                           .scale = static_cast<float>(softmax_scale * 1.4426950408889634),
                           .error = error_word(),
                           .fp8_cache = fp8};
  Tensor partials = workspace(q, flash_decode_workspace(params));
  params.partials = pointer<float>(partials);
  L4K_LAUNCH(l4k::flash_decode(params, device.stream()));
  return {out, lse};
}

std::tuple<Tensor, Tensor> merge_attention_states(const Tensor& outs, const Tensor& lses) {
  L4K_CHECK_DTYPE(outs, BFloat16);
  L4K_CHECK_DTYPE(lses, Float);
  const int64_t rank = outs.dim();
  L4K_REQUIRE((rank == 4 || rank == 5) && outs.size(0) >= 1 && outs.size(rank - 1) == 128,
              "expected outs to be [N, T, H, 128] or [N, B, S, H, 128] with N >= 1, got ",
              describe(outs));
  const int64_t parts = outs.size(0), tokens = outs.size(rank - 3), heads = outs.size(rank - 2);
  L4K_REQUIRE(rank == 4 ? fits(lses, {parts, heads, tokens})
                        : fits(lses, {parts, outs.size(1), heads, tokens}),
              "expected lses to be [N, ..., H, T] for outs ", describe(outs), ", got ",
              describe(lses));
  L4K_CHECK_CONTIGUOUS(outs);
  L4K_CHECK_CONTIGUOUS(lses);
  L4K_CHECK_ROWS(outs);
  Device device(outs);
  const std::vector<int64_t> shape(outs.sizes().begin() + 1, outs.sizes().end());
  const std::vector<int64_t> lse_shape(lses.sizes().begin() + 1, lses.sizes().end());
  Tensor out = empty_like(outs, shape), lse = empty_like(lses, lse_shape);
  MergeAttentionStatesParams params{.rows = lse.numel(),
                                    .parts = static_cast<int>(parts),
                                    .tokens = static_cast<int>(tokens),
                                    .heads = static_cast<int>(heads),
                                    .outs = pointer(outs),
                                    .lses = pointer<float>(lses),
                                    .out = pointer(out),
                                    .lse = pointer<float>(lse)};
  L4K_LAUNCH(l4k::merge_attention_states(params, device.stream()));
  return {out, lse};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  L4K_IMPL(m, "flash_prefill", flash_prefill);
  L4K_IMPL(m, "flash_decode", flash_decode);
  L4K_IMPL(m, "merge_attention_states", merge_attention_states);
}
