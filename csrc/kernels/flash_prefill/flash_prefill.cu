#include "kernels/flash_prefill/flash_prefill.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "host/tensor_map.h"
#include "kernels/flash_prefill/merge.cuh"
#include "kernels/flash_prefill/plan.cuh"

namespace l4k {

namespace {

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

template <bool kFp8>
cudaError_t launch_prefill(const FlashPrefillParams& p, cudaStream_t stream) {
  CUtensorMap q, k, v;
  cudaError_t error = make_tensor_map(query_map(p), &q);
  if (error == cudaSuccess) error = make_tensor_map(cache_map(p, p.k_cache), &k);
  if (error == cudaSuccess) error = make_tensor_map(cache_map(p, p.v_cache), &v);
  if (error != cudaSuccess) return error;
  LaunchConfig config{.grid = dim3(p.ctas),
                      .block = dim3(kPrefillThreads),
                      .smem_bytes = sizeof(PrefillSmem<kFp8>) + 1024};
  return launch(flash_prefill_kernel<kFp8>, config, stream, q, k, v, p);
}

}  // namespace

void size_flash_prefill(FlashPrefillParams& p) {
  p.max_items = max_prefill_items(p.rows, p.batch, p.max_seqlen_q, p.group.value);
  p.ctas = prefill_ctas(p.max_items, p.kv_heads, p.capacity(), sm_count());
}

int64_t flash_prefill_plan_words(const FlashPrefillParams& p) {
  return prefill_plan_words(p.max_items, p.batch);
}

int64_t flash_prefill_partial_words(const FlashPrefillParams& p) {
  return p.cuts() ? PrefillPartials::words(p) : 0;
}

cudaError_t flash_prefill_plan(const FlashPrefillParams& p, cudaStream_t stream) {
  LaunchConfig config{.grid = dim3(1), .block = dim3(kPlanThreads)};
  return launch(flash_prefill_plan_kernel, config, stream, p);
}

int64_t flash_prefill_anchor_words(const FlashPrefillParams& p) {
  if (max_key_tiles(p.chunk, p.capacity()) <= kAnchorTiles) return 0;
  return int64_t{p.ctas} * AnchoredSums::kWords;
}

cudaError_t flash_prefill(const FlashPrefillParams& p, cudaStream_t stream) {
  cudaError_t error = p.planned ? cudaSuccess : flash_prefill_plan(p, stream);
  if (error != cudaSuccess) return error;
  error = p.fp8 ? launch_prefill<true>(p, stream) : launch_prefill<false>(p, stream);
  if (error != cudaSuccess || !p.cuts()) return error;
  // Items that are cut have at most so many rows; which they are, the device knows.
  const int64_t rows = int64_t{max_prefill_cut(p.max_items)} * p.kv_heads * kPrefillRows;
  const int64_t ctas = std::min<int64_t>(rows / kMergeWarps, int64_t{kMergeCtasPerSm} * sm_count());
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(ctas)), .block = dim3(kMergeThreads)};
  return launch(flash_prefill_merge_kernel, config, stream, p);
}

}  // namespace l4k
