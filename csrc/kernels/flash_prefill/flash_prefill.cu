#include "kernels/flash_prefill/flash_prefill.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "host/tensor_map.h"
#include "kernels/flash_prefill/plan.cuh"

namespace l4k {

namespace {

int64_t max_items(const FlashPrefillParams& p) {
  return max_prefill_items(p.rows, p.batch, p.max_seqlen_q, p.group.value);
}

// [64 of D, heads of a KV head, tokens] of Q: the rows of a tile.
TensorMapSpec query_map(const FlashPrefillParams& p) {
  const auto group = static_cast<uint32_t>(p.group.value);
  return {.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
          .rank = 3,
          .base = p.q,
          .shape = {128, static_cast<uint64_t>(p.num_heads), static_cast<uint64_t>(p.rows)},
          .strides = {static_cast<uint64_t>(p.q_head_stride) * 2,
                      static_cast<uint64_t>(p.q_row_stride) * 2},
          .box = {64, group, static_cast<uint32_t>(prefill_tokens(group))}};
}

// [128 bytes of D, head, slots, page] of the cache.
TensorMapSpec cache_map(const FlashPrefillParams& p, const void* cache) {
  const uint64_t row = p.fp8 ? 128 : 256, heads = p.kv_heads, page_size = p.page_size;
  return {.type = p.fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
          .rank = 4,
          .base = cache,
          .shape = {128, heads, page_size, static_cast<uint64_t>(p.num_pages)},
          .strides = {row, heads * row, page_size * heads * row},
          .box = {p.fp8 ? 128u : 64u, 1, static_cast<uint32_t>(box_slots(p.page_size)), 1}};
}

// At least one CTA: there may be rows that no sequence owns.
int64_t prefill_ctas(const FlashPrefillParams& p) {
  return std::clamp<int64_t>(max_items(p) * p.kv_heads, 1, sm_count());
}

template <bool kFp8>
cudaError_t launch_prefill(const FlashPrefillParams& p, cudaStream_t stream) {
  CUtensorMap q, k, v;
  cudaError_t error = make_tensor_map(query_map(p), &q);
  if (error == cudaSuccess) error = make_tensor_map(cache_map(p, p.k_cache), &k);
  if (error == cudaSuccess) error = make_tensor_map(cache_map(p, p.v_cache), &v);
  if (error != cudaSuccess) return error;
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(prefill_ctas(p))),
                      .block = dim3(kPrefillThreads),
                      .smem_bytes = sizeof(PrefillSmem<kFp8>) + 1024};
  return launch(flash_prefill_kernel<kFp8>, config, stream, q, k, v, p);
}

}  // namespace

int64_t flash_prefill_plan_words(const FlashPrefillParams& p) {
  return (sizeof(PrefillPlan) + max_items(p) * sizeof(PrefillItem)) / sizeof(int);
}

int64_t flash_prefill_anchor_words(const FlashPrefillParams& p) {
  if (max_key_tiles(p.chunk, p.capacity()) <= kAnchorTiles) return 0;
  return prefill_ctas(p) * AnchoredSums::kWords;
}

cudaError_t flash_prefill(const FlashPrefillParams& p, cudaStream_t stream) {
  LaunchConfig config{.grid = dim3(1), .block = dim3(kPlanThreads)};
  cudaError_t error = launch(flash_prefill_plan_kernel, config, stream, p);
  if (error != cudaSuccess) return error;
  return p.fp8 ? launch_prefill<true>(p, stream) : launch_prefill<false>(p, stream);
}

}  // namespace l4k
