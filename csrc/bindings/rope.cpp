#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/rope_cache/rope_cache.h"

namespace l4k::binding {

Tensor rope_cache(const Tensor& qkv, const Tensor& positions, const Tensor& slot_mapping,
                  Tensor k_cache, Tensor v_cache, int64_t num_heads, const OptionalTensor& cos_sin,
                  std::optional<double> qk_norm_eps, double attn_scale, int64_t floor_scale,
                  const OptionalTensor& k_scale, const OptionalTensor& v_scale) {
  const Call call("rope_cache", {"qkv", qkv});
  const PagedCache cache = check_paged_cache(call, k_cache, v_cache, k_scale, v_scale, kHeadDim);
  call.require(num_heads >= 1 && num_heads < kIntLimit && cache.kv_heads >= 1 &&
                   num_heads % cache.kv_heads == 0,
               "expected num_heads to be a positive multiple of the ", cache.kv_heads,
               " heads of k_cache, got ", num_heads);
  const Rows in = check_rows(call, {"qkv", qkv}, ScalarType::BFloat16,
                             {"T", (num_heads + 2 * cache.kv_heads) * kHeadDim});
  const int64_t* positions_data = check_list<int64_t>(call, {"positions", positions}, {in.count});
  const int64_t* slots_data = check_list<int64_t>(call, {"slot_mapping", slot_mapping}, {in.count});
  const HeadRule rule = check_head_rule(call, cos_sin, qk_norm_eps, attn_scale, floor_scale);
  Tensor q = call.empty({in.count, num_heads, kHeadDim}, ScalarType::BFloat16);
  const RopeCacheParams params{.tokens = in.count,
                               .num_heads = static_cast<int>(num_heads),
                               .kv_heads = static_cast<int>(cache.kv_heads),
                               .num_slots = cache.pages * cache.page_size,
                               .qkv = in.data,
                               .positions = positions_data,
                               .slot_mapping = slots_data,
                               .rule = rule,
                               .k_scale = cache.k_scale,
                               .v_scale = cache.v_scale,
                               .q = pointer(q),
                               .k_cache = cache.k,
                               .v_cache = cache.v,
                               .qkv_stride = in.stride,
                               .error = error_word(),
                               .fp8_cache = cache.fp8};
  call.launch(l4k::rope_cache, params);
  return q;
}

}  // namespace l4k::binding

L4K_REGISTER(m) { l4k::bind<l4k::binding::rope_cache>(m, "rope_cache"); }
