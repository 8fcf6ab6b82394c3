#include "bindings/arguments.h"
#include "host/device.h"
#include "kernels/flash_prefill/flash_prefill.h"

namespace l4k::binding {

constexpr int64_t kHeadDim = 128;

std::tuple<Tensor, Tensor> flash_prefill(const Tensor& q, const Tensor& k_cache,
                                         const Tensor& v_cache, const Tensor& cu_seqlens_q,
                                         const Tensor& seqlens_k, const Tensor& block_table,
                                         double softmax_scale, int64_t max_seqlen_q, int64_t chunk,
                                         const std::optional<Tensor>& maybe_k_scale,
                                         const std::optional<Tensor>& maybe_v_scale) {
  L4K_CHECK_SHAPE(q, -1, -1, kHeadDim);
  L4K_CHECK_DTYPE(cu_seqlens_q, Int);
  L4K_CHECK_SHAPE(cu_seqlens_q, -1);
  L4K_CHECK_CONTIGUOUS(cu_seqlens_q);
  const int64_t rows = q.size(0), num_heads = q.size(1), batch = cu_seqlens_q.size(0) - 1;
  L4K_REQUIRE(batch >= 0, "expected cu_seqlens_q to be [B + 1], got ", describe(cu_seqlens_q));
  L4K_CHECK_ATTENTION(num_heads, batch, 8);
  const bool fp8 = k_cache.scalar_type() == ScalarType::Float8_e4m3fn;
  const int64_t page_size = k_cache.size(1), kv_heads = k_cache.size(2);
  L4K_REQUIRE(softmax_scale > 0, "expected softmax_scale to be positive, got ", softmax_scale);
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
      .num_pages = static_cast<int>(k_cache.size(0)),
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
  params.plan = pointer<int>(workspace(q, flash_prefill_plan_words(params)));
  L4K_LAUNCH(l4k::flash_prefill(params, device.stream()));
  return {out, lse};
}

}  // namespace l4k::binding

L4K_REGISTER(m) { L4K_IMPL(m, "flash_prefill", flash_prefill); }
