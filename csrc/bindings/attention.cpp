#include <cmath>

#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/flash_decode/flash_decode.h"
#include "kernels/flash_prefill/flash_prefill.h"
#include "kernels/merge_attention_states/merge_attention_states.h"

namespace l4k::binding {

namespace {

constexpr int64_t kMaxTokens = 16, kMaxGroup = 16;

void check_heads(const Call& call, const Argument& q, int64_t num_heads, const PagedCache& cache) {
  call.require(cache.kv_heads >= 1 && num_heads >= 1 && num_heads % cache.kv_heads == 0 &&
                   num_heads / cache.kv_heads <= kMaxGroup,
               "expected 1 to ", kMaxGroup, " heads of q for each of the ", cache.kv_heads,
               " heads of k_cache, got ", num_heads, " and ", q);
}

// Queries of their own: [..., num_heads, 128] bf16.
struct Queries {
  const void* data;
  int64_t num_heads;
};

Queries check_queries(const Call& call, const Argument& q, const PagedCache& cache) {
  call.require_dtype(q, {ScalarType::BFloat16});
  const int64_t num_heads = q.sizes[q.rank() - 2];
  check_heads(call, q, num_heads, cache);
  return {check_vectors(call, q), num_heads};
}

// The cache of the attention ops; a page holds a multiple of `unit` keys.
PagedCache check_cache(const Call& call, const Tensor& k_cache, const Tensor& v_cache,
                       const OptionalTensor& k_scale, const OptionalTensor& v_scale, int64_t unit) {
  const PagedCache cache = check_paged_cache(call, k_cache, v_cache, k_scale, v_scale, kHeadDim);
  call.require(cache.page_size > 0 && cache.page_size % unit == 0,
               "expected pages of a multiple of ", unit, " slots on CUDA, got ", cache.page_size);
  call.require(cache.pages > 0 && cache.pages < kIntLimit,
               "expected k_cache to hold 1 to 2^31 - 1 pages, got ", cache.pages);
  return cache;
}

// How many keys each sequence has, and the pages that hold them.
struct Sequences {
  const int* seqlens_k;    // [batch]
  const int* block_table;  // [batch, max_pages]
  int64_t table_stride;    // elements
  int max_pages;
};

Sequences check_sequences(const Call& call, const Tensor& seqlens_k, const Tensor& block_table,
                          int64_t batch) {
  const Argument table("block_table", block_table);
  call.require(batch < kIntLimit, "expected fewer than 2^31 sequences, got ", batch);
  const int* lengths = check_list<int>(call, {"seqlens_k", seqlens_k}, {batch});
  call.require_dtype(table, {ScalarType::Int});
  call.require_shape(table, {batch, "max_pages"});
  call.require(table.sizes[1] < kIntLimit, "expected fewer than 2^31 pages, got block_table ",
               table);
  call.require(table.strides[1] == 1 || table.sizes[1] <= 1,
               "expected the rows of block_table to be contiguous, got ", table);
  const void* pages = call.address(table, sizeof(int));
  return {lengths, static_cast<const int*>(pages), table.strides[0],
          static_cast<int>(table.sizes[1])};
}

void check_softmax(const Call& call, double softmax_scale) {
  call.require(softmax_scale > 0 && std::isfinite(softmax_scale),
               "expected softmax_scale to be positive and finite, got ", softmax_scale);
}

void check_chunk(const Call& call, int64_t chunk) {
  call.require(chunk >= 0 && chunk < kIntLimit, "expected chunk to be 0 (off) or positive, got ",
               chunk);
}

}  // namespace

namespace {

// What a plan is made from, and the launches that share it have in common. A row of the block table
// has a place for pages x page_size keys.
FlashPrefillParams prefill_params(const Call& call, const Tensor& cu_seqlens_q,
                                  const Tensor& seqlens_k, int64_t rows, int64_t num_heads,
                                  int64_t kv_heads, int64_t pages, int64_t page_size,
                                  int64_t max_seqlen_q, int64_t chunk) {
  const int* starts = check_list<int>(call, {"cu_seqlens_q", cu_seqlens_q}, {"B + 1"});
  const int64_t batch = cu_seqlens_q.size(0) - 1;
  call.require(batch >= 0, "expected cu_seqlens_q to be [B + 1], got ", cu_seqlens_q);
  call.require(rows >= 0 && rows < kIntLimit && max_seqlen_q >= 0,
               "expected fewer than 2^31 rows of q and max_seqlen_q >= 0, got ", rows, " and ",
               max_seqlen_q);
  check_chunk(call, chunk);
  FlashPrefillParams params{
      .rows = static_cast<int>(rows),
      .batch = static_cast<int>(batch),
      .num_heads = static_cast<int>(num_heads),
      .kv_heads = static_cast<int>(kv_heads),
      .group = SmallDivisor::of(static_cast<int>(num_heads / kv_heads)),
      .page_size = static_cast<int>(page_size),
      .max_pages = static_cast<int>(pages),
      // No sequence has more than all rows.
      .max_seqlen_q = static_cast<int>(max_seqlen_q < rows ? max_seqlen_q : rows),
      .chunk = chunk,
      .cu_seqlens_q = starts,
      .seqlens_k = check_list<int>(call, {"seqlens_k", seqlens_k}, {batch}),
      .error = error_word()};
  size_flash_prefill(params);
  return params;
}

}  // namespace

Tensor flash_prefill_plan(const Tensor& cu_seqlens_q, const Tensor& seqlens_k, int64_t rows,
                          int64_t num_heads, int64_t kv_heads, int64_t capacity,
                          int64_t max_seqlen_q, int64_t chunk) {
  const Call call("flash_prefill_plan", {"cu_seqlens_q", cu_seqlens_q});
  call.require(kv_heads >= 1 && kv_heads < kIntLimit && num_heads >= 1 && num_heads < kIntLimit &&
                   num_heads % kv_heads == 0 && num_heads / kv_heads <= kMaxGroup,
               "expected num_heads to be 1 to ", kMaxGroup, " times kv_heads, got ", num_heads,
               " and ", kv_heads);
  call.require(capacity >= 0, "expected capacity to be the keys of a row of the block table, got ",
               capacity);
  const int64_t keys = capacity < kIntLimit ? capacity : kIntLimit - 1;  // no length is more
  FlashPrefillParams params = prefill_params(call, cu_seqlens_q, seqlens_k, rows, num_heads,
                                             kv_heads, keys, 1, max_seqlen_q, chunk);
  Tensor plan = call.empty({flash_prefill_plan_words(params)}, ScalarType::Int);
  params.plan = pointer<int>(plan);
  call.launch(l4k::flash_prefill_plan, params);
  return plan;
}

std::tuple<Tensor, Tensor> flash_prefill(const Tensor& q, const Tensor& k_cache,
                                         const Tensor& v_cache, const Tensor& cu_seqlens_q,
                                         const Tensor& seqlens_k, const Tensor& block_table,
                                         double softmax_scale, int64_t max_seqlen_q, int64_t chunk,
                                         const OptionalTensor& k_scale,
                                         const OptionalTensor& v_scale,
                                         const OptionalTensor& given_plan) {
  const Call call("flash_prefill", {"q", q});
  call.require_shape({"q", q}, {"Tq", "Hq", kHeadDim});
  const PagedCache cache = check_cache(call, k_cache, v_cache, k_scale, v_scale, 8);
  const Queries queries = check_queries(call, {"q", q}, cache);
  const int64_t rows = q.size(0);
  check_softmax(call, softmax_scale);
  const Sequences sequences =
      check_sequences(call, seqlens_k, block_table, cu_seqlens_q.numel() - 1);
  FlashPrefillParams params =
      prefill_params(call, cu_seqlens_q, seqlens_k, rows, queries.num_heads, cache.kv_heads,
                     sequences.max_pages, cache.page_size, max_seqlen_q, chunk);
  const int64_t plan_words = flash_prefill_plan_words(params);
  params.plan = check_optional_list<int>(call, {"plan", given_plan}, {plan_words});
  params.planned = given_plan.has_value();
  call.require(reinterpret_cast<uintptr_t>(params.plan) % 16 == 0,
               "expected plan to be 16-byte aligned; pass it as flash_prefill_plan() made it");
  Tensor out = call.empty(q.sizes(), ScalarType::BFloat16);
  Tensor lse = call.empty({queries.num_heads, rows}, ScalarType::Float);
  if (rows == 0) return {out, lse};
  params.num_pages = static_cast<int>(cache.pages);
  params.block_table = sequences.block_table;
  params.table_stride = sequences.table_stride;
  params.softmax_scale = static_cast<float>(softmax_scale);
  params.fp8 = cache.fp8;
  params.q = queries.data;
  params.q_row_stride = rows > 1 ? q.stride(0) : queries.num_heads * kHeadDim;
  params.q_head_stride = queries.num_heads > 1 ? q.stride(1) : kHeadDim;
  params.k_cache = cache.k;
  params.v_cache = cache.v;
  params.k_scale = cache.k_scale;
  params.v_scale = cache.v_scale;
  params.out = pointer(out);
  params.lse = pointer<float>(lse);
  Tensor plan = call.workspace(params.planned ? 0 : plan_words);
  if (!params.planned) params.plan = pointer<int>(plan);
  Tensor partials = call.workspace(flash_prefill_partial_words(params));
  params.partials = pointer<float>(partials);
  Tensor anchors = call.workspace(flash_prefill_anchor_words(params));
  params.anchors = pointer<float>(anchors);
  call.launch(l4k::flash_prefill, params);
  return {out, lse};
}

namespace {

int64_t check_new_tokens(const Call& call, int64_t tokens, const Argument& q) {
  call.require(tokens >= 1 && tokens <= kMaxTokens, "expected 1 to ", kMaxTokens,
               " new tokens per sequence, got ", tokens, " and ", q);
  return tokens;
}

// What both decoding ops say of a batch, but for where its queries are.
FlashDecodeParams decode_params(const Sequences& sequences, int64_t batch, int64_t tokens,
                                int64_t num_heads, const PagedCache& cache, double softmax_scale,
                                int64_t chunk) {
  return {.batch = static_cast<int>(batch),
          .tokens = static_cast<int>(tokens),
          .kv_heads = static_cast<int>(cache.kv_heads),
          .group = static_cast<int>(num_heads / cache.kv_heads),
          .chunk = static_cast<int>(chunk),
          .num_pages = static_cast<int>(cache.pages),
          .page_size = static_cast<int>(cache.page_size),
          .max_pages = sequences.max_pages,
          .page_blocks = BlockDivisor::of(static_cast<uint32_t>(cache.page_size / kDecodeKeyBlock)),
          .k_cache = cache.k,
          .v_cache = cache.v,
          .seqlens_k = sequences.seqlens_k,
          .block_table = sequences.block_table,
          .table_stride = sequences.table_stride,
          .k_scale = cache.k_scale,
          .v_scale = cache.v_scale,
          .softmax_scale_log2 = static_cast<float>(softmax_scale * 1.4426950408889634),
          .error = error_word(),
          .fp8_cache = cache.fp8};
}

// The plan of a call: the caller's, or one that is made before the kernel.
Tensor decode_plan(const Call& call, FlashDecodeParams& params, const OptionalTensor& plan,
                   bool settled) {
  const OptionalArgument given("plan", plan);
  const int64_t words = kDecodeLengths + int64_t{params.batch};
  params.makes_plan = !given;
  params.settled = settled && given;
  Tensor made = given ? *plan : call.workspace(words);
  call.require_dtype({"plan", made}, {ScalarType::Int});
  call.require_shape({"plan", made}, {words});
  call.require_contiguous({"plan", made});
  params.plan = static_cast<int*>(call.address({"plan", made}, 16));
  return made;
}

// Items are counted in 32 bits, as are the rows of one sequence's.
void check_items(const Call& call, int64_t batch, int64_t tokens, int64_t num_heads,
                 int64_t kv_heads) {
  const int64_t items = kv_heads * ceil_div(tokens * num_heads / kv_heads, int64_t{kDecodeRows});
  call.require(batch * items < kIntLimit, "expected fewer than 2^31 sequences x KV heads, got ",
               batch, " x ", kv_heads);
}

}  // namespace

Tensor flash_decode_plan(const Tensor& seqlens_k, int64_t num_heads, int64_t kv_heads,
                         int64_t capacity, int64_t tokens, int64_t chunk) {
  const Call call("flash_decode_plan", {"seqlens_k", seqlens_k});
  const int* lengths = check_list<int>(call, {"seqlens_k", seqlens_k}, {"B"});
  const int64_t batch = seqlens_k.size(0);
  check_new_tokens(call, tokens, {"seqlens_k", seqlens_k});
  call.require(kv_heads >= 1 && num_heads >= 1 && num_heads < kIntLimit &&
                   num_heads % kv_heads == 0 && num_heads / kv_heads <= kMaxGroup,
               "expected 1 to ", kMaxGroup, " heads of q for each KV head, got num_heads ",
               num_heads, " and kv_heads ", kv_heads);
  call.require(chunk >= 0 && chunk < kIntLimit, "expected chunk to be 0 (off) or positive, got ",
               chunk);
  call.require(capacity >= 0,
               "expected capacity to be the keys that a row of block_table addresses, got ",
               capacity);
  call.require(batch < kIntLimit, "expected fewer than 2^31 sequences, got ", batch);
  check_items(call, batch, tokens, num_heads, kv_heads);
  Tensor plan = call.empty({kDecodeLengths + batch}, ScalarType::Int);
  if (batch == 0) return plan;
  const DecodeShape shape = flash_decode_shape({.batch = static_cast<int>(batch),
                                                .kv_heads = static_cast<int>(kv_heads),
                                                .group = static_cast<int>(num_heads / kv_heads),
                                                .tokens = static_cast<int>(tokens),
                                                .chunk = static_cast<int>(chunk),
                                                .addressed = capacity});
  const FlashDecodePlanParams params{
      .header = {kDecodePlanKind, shape}, .seqlens_k = lengths, .plan = pointer<int>(plan)};
  call.launch(l4k::flash_decode_plan, params);
  return plan;
}

std::tuple<Tensor, Tensor> flash_decode(const Tensor& q, const Tensor& k_cache,
                                        const Tensor& v_cache, const Tensor& seqlens_k,
                                        const Tensor& block_table, double softmax_scale,
                                        int64_t chunk, const OptionalTensor& k_scale,
                                        const OptionalTensor& v_scale, const OptionalTensor& plan,
                                        bool settled) {
  const Call call("flash_decode", {"q", q});
  call.require_shape({"q", q}, {"B", "S", "Hq", kHeadDim});
  const int64_t batch = q.size(0), tokens = check_new_tokens(call, q.size(1), {"q", q});
  const PagedCache cache = check_cache(call, k_cache, v_cache, k_scale, v_scale, 16);
  const Queries queries = check_queries(call, {"q", q}, cache);
  const Sequences sequences = check_sequences(call, seqlens_k, block_table, batch);
  check_softmax(call, softmax_scale);
  check_chunk(call, chunk);
  Tensor out = call.empty(q.sizes(), ScalarType::BFloat16);
  Tensor lse = call.empty({batch, queries.num_heads, tokens}, ScalarType::Float);
  if (batch == 0) return {out, lse};
  FlashDecodeParams params =
      decode_params(sequences, batch, tokens, queries.num_heads, cache, softmax_scale, chunk);
  params.q = queries.data;
  params.q_batch_stride = q.stride(0);
  params.q_token_stride = q.stride(1);
  params.q_head_stride = q.stride(2);
  params.out = pointer(out);
  params.lse = pointer<float>(lse);
  check_items(call, batch, tokens, queries.num_heads, cache.kv_heads);
  const Tensor used_plan = decode_plan(call, params, plan, settled);
  Tensor partials = call.workspace(flash_decode_workspace(params));
  params.partials = pointer<float>(partials);
  call.launch(l4k::flash_decode, params);
  return {out, lse};
}

std::tuple<Tensor, Tensor> flash_decode_append(
    const Tensor& qkv, const Tensor& positions, const Tensor& slot_mapping, Tensor k_cache,
    Tensor v_cache, const Tensor& seqlens_k, const Tensor& block_table, int64_t num_heads,
    double softmax_scale, int64_t tokens, int64_t chunk, const OptionalTensor& cos_sin,
    std::optional<double> qk_norm_eps, double attn_scale, int64_t floor_scale,
    const OptionalTensor& k_scale, const OptionalTensor& v_scale, const OptionalTensor& plan,
    bool settled) {
  const Call call("flash_decode_append", {"qkv", qkv});
  check_new_tokens(call, tokens, {"qkv", qkv});
  const PagedCache cache = check_cache(call, k_cache, v_cache, k_scale, v_scale, 16);
  call.require(num_heads >= 1 && num_heads < kIntLimit, "expected num_heads to be positive, got ",
               num_heads);
  check_heads(call, {"qkv", qkv}, num_heads, cache);
  const Rows in = check_rows(call, {"qkv", qkv}, ScalarType::BFloat16,
                             {"T", (num_heads + 2 * cache.kv_heads) * kHeadDim});
  const int64_t batch = in.count / tokens;
  call.require(in.count == batch * tokens, "expected tokens = ", tokens,
               " rows of qkv for each sequence, got qkv ", Argument("qkv", qkv));
  const Sequences sequences = check_sequences(call, seqlens_k, block_table, batch);
  check_softmax(call, softmax_scale);
  check_chunk(call, chunk);
  const int64_t* positions_data = check_list<int64_t>(call, {"positions", positions}, {in.count});
  const int64_t* slots_data = check_list<int64_t>(call, {"slot_mapping", slot_mapping}, {in.count});
  const HeadRule rule = check_head_rule(call, cos_sin, qk_norm_eps, attn_scale, floor_scale);
  Tensor out = call.empty({batch, tokens, num_heads, kHeadDim}, ScalarType::BFloat16);
  Tensor lse = call.empty({batch, num_heads, tokens}, ScalarType::Float);
  if (batch == 0) return {out, lse};
  FlashDecodeAppendParams params{
      .attention = decode_params(sequences, batch, tokens, num_heads, cache, softmax_scale, chunk),
      .qkv = in.data,
      .qkv_stride = in.stride,
      .positions = positions_data,
      .slot_mapping = slots_data,
      .rule = rule,
      .k_cache = cache.k,
      .v_cache = cache.v};
  params.attention.out = pointer(out);
  params.attention.lse = pointer<float>(lse);
  check_items(call, batch, tokens, num_heads, cache.kv_heads);
  const Tensor used_plan = decode_plan(call, params.attention, plan, settled);
  Tensor partials = call.workspace(flash_decode_workspace(params.attention));
  params.attention.partials = pointer<float>(partials);
  call.launch(l4k::flash_decode_append, params);
  return {out, lse};
}

std::tuple<Tensor, Tensor> merge_attention_states(const Tensor& outs, const Tensor& lses) {
  const Call call("merge_attention_states", {"outs", outs});
  const Argument values("outs", outs), sums("lses", lses);
  const int64_t rank = values.rank();
  call.require(
      (rank == 4 || rank == 5) && values.sizes[0] >= 1 && values.sizes[rank - 1] == kHeadDim,
      "expected outs to be [N, T, H, 128] or [N, B, S, H, 128] with N >= 1, got ", values);
  const int64_t parts = values.sizes[0];
  const int64_t tokens = values.sizes[rank - 3], heads = values.sizes[rank - 2];
  call.require(rank == 4 ? fits(sums.sizes, {parts, heads, tokens})
                         : fits(sums.sizes, {parts, values.sizes[1], heads, tokens}),
               "expected lses to be [N, ..., H, T] for outs ", values, ", got ", sums);
  const Rows rows = check_rows(call, values, ScalarType::BFloat16);
  call.require_contiguous(values);
  call.require_dtype(sums, {ScalarType::Float});
  call.require_contiguous(sums);
  const void* lses_data = call.address(sums, sizeof(float));
  Tensor out = call.empty(Sizes(values.sizes.begin() + 1, values.sizes.end()), values.dtype);
  Tensor lse = call.empty(Sizes(sums.sizes.begin() + 1, sums.sizes.end()), sums.dtype);
  const MergeAttentionStatesParams params{.rows = lse.numel(),
                                          .parts = static_cast<int>(parts),
                                          .tokens = static_cast<int>(tokens),
                                          .heads = static_cast<int>(heads),
                                          .outs = rows.data,
                                          .lses = static_cast<const float*>(lses_data),
                                          .out = pointer(out),
                                          .lse = pointer<float>(lse)};
  call.launch(l4k::merge_attention_states, params);
  return {out, lse};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::flash_prefill>(m, "flash_prefill");
  l4k::bind<l4k::binding::flash_prefill_plan>(m, "flash_prefill_plan");
  l4k::bind<l4k::binding::flash_decode_plan>(m, "flash_decode_plan");
  l4k::bind<l4k::binding::flash_decode>(m, "flash_decode");
  l4k::bind<l4k::binding::flash_decode_append>(m, "flash_decode_append");
  l4k::bind<l4k::binding::merge_attention_states>(m, "merge_attention_states");
}
