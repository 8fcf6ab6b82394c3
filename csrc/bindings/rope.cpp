#include "bindings/arguments.h"
#include "kernels/rope_cache/rope_cache.h"

namespace l4k::binding {

Tensor rope_cache(const Tensor& qkv, const Tensor& positions, const Tensor& slot_mapping,
                  Tensor k_cache, Tensor v_cache, int64_t num_heads,
                  const std::optional<Tensor>& maybe_cos_sin, std::optional<double> qk_norm_eps,
                  double attn_scale, int64_t floor_scale,
                  const std::optional<Tensor>& maybe_k_scale,
                  const std::optional<Tensor>& maybe_v_scale) {
  L4K_CHECK_DTYPE(qkv, BFloat16);
  L4K_CHECK_DTYPE(positions, Long);
  L4K_CHECK_DTYPE(slot_mapping, Long);
  L4K_CHECK_PAGED_CACHE(kHeadDim);
  const bool fp8 = k_cache.scalar_type() == ScalarType::Float8_e4m3fn;
  const int64_t tokens = qkv.size(0), kv_heads = k_cache.size(2);
  L4K_REQUIRE(num_heads >= 1 && kv_heads >= 1 && num_heads % kv_heads == 0,
              "expected num_heads to be a positive multiple of the ", kv_heads,
              " heads of k_cache, got ", num_heads);
  L4K_CHECK_SHAPE(qkv, -1, (num_heads + 2 * kv_heads) * kHeadDim);
  L4K_CHECK_SHAPE(positions, tokens);
  L4K_CHECK_SHAPE(slot_mapping, tokens);
  L4K_REQUIRE(floor_scale >= 1 && floor_scale < int64_t{1} << 31,
              "expected floor_scale to be positive, got ", floor_scale);
  L4K_REQUIRE(qk_norm_eps.value_or(0.0) >= 0.0,
              "expected qk_norm_eps to be None (off) or not negative, got ", *qk_norm_eps);
  L4K_CHECK_ROWS(qkv);
  L4K_CHECK_CONTIGUOUS(positions);
  L4K_CHECK_CONTIGUOUS(slot_mapping);
  if (maybe_cos_sin.has_value()) {
    const Tensor& cos_sin = *maybe_cos_sin;
    L4K_CHECK_DTYPE(cos_sin, Float);
    L4K_CHECK_SHAPE(cos_sin, -1, kHeadDim);
    L4K_REQUIRE(cos_sin.size(0) > 0, "expected cos_sin to hold at least one position, got none");
    L4K_CHECK_CONTIGUOUS(cos_sin);
    L4K_CHECK_ROWS(cos_sin);
  }
  Device device(qkv);
  Tensor q = empty_like(qkv, {tokens, num_heads, kHeadDim});
  RopeCacheParams params{.tokens = tokens,
                         .num_heads = static_cast<int>(num_heads),
                         .kv_heads = static_cast<int>(kv_heads),
                         .num_slots = k_cache.size(0) * k_cache.size(1),
                         .table_rows = maybe_cos_sin.has_value() ? maybe_cos_sin->size(0) : 0,
                         .qkv = pointer(qkv),
                         .positions = pointer<int64_t>(positions),
                         .slot_mapping = pointer<int64_t>(slot_mapping),
                         .cos_sin = optional_pointer<float>(maybe_cos_sin),
                         .k_scale = optional_pointer<float>(maybe_k_scale),
                         .v_scale = optional_pointer<float>(maybe_v_scale),
                         .q = pointer(q),
                         .k_cache = pointer(k_cache),
                         .v_cache = pointer(v_cache),
                         .qkv_stride = qkv.stride(0),
                         .error = error_word(),
                         .floor_scale = static_cast<int>(floor_scale),
                         .attn_scale = static_cast<float>(attn_scale),
                         .qk_norm_eps = static_cast<float>(qk_norm_eps.value_or(-1.0)),
                         .fp8_cache = fp8};
  L4K_LAUNCH(l4k::rope_cache(params, device.stream()));
  return q;
}

}  // namespace l4k::binding

L4K_REGISTER(m) { L4K_IMPL(m, "rope_cache", rope_cache); }
