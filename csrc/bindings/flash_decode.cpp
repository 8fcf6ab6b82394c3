#include "kernels/flash_decode/flash_decode.h"

#include <atomic>
#include <cmath>
#include <random>

#include "bindings/arguments.h"
#include "host/device.h"

namespace l4k::binding {

namespace {

constexpr int64_t kMaxTokens = 16, kHeadDim = 128;

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

std::tuple<Tensor, Tensor> flash_decode(const Tensor& q, const Tensor& k_cache,
                                        const Tensor& v_cache, const Tensor& seqlens_k,
                                        const Tensor& block_table, double softmax_scale,
                                        int64_t chunk, const std::optional<Tensor>& maybe_k_scale,
                                        const std::optional<Tensor>& maybe_v_scale) {
  L4K_CHECK_SHAPE(q, -1, -1, -1, kHeadDim);
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2);
  L4K_CHECK_ATTENTION(heads, batch, 16);
  L4K_REQUIRE(tokens >= 1 && tokens <= kMaxTokens, "expected 1 to ", kMaxTokens,
              " new tokens per sequence, got q ", describe(q));
  const bool fp8 = k_cache.scalar_type() == ScalarType::Float8_e4m3fn;
  const int64_t pages = k_cache.size(0), page_size = k_cache.size(1), kv_heads = k_cache.size(2);
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

}  // namespace l4k::binding

L4K_REGISTER(m) { L4K_IMPL(m, "flash_decode", flash_decode); }
