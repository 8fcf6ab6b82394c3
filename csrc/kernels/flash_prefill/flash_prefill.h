// Causal attention, optionally in chunks, of new tokens over their paged keys and values.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/flash_prefill/schedule.h"
#include "tile/divide.h"

namespace l4k {

struct FlashPrefillParams {
  int rows, batch;  // rows of Q: the new tokens of all sequences
  int num_heads, kv_heads;
  SmallDivisor group;                   // heads of Q for each of the cache
  int num_pages, page_size, max_pages;  // page_size: a multiple of 8
  int max_seqlen_q;
  int64_t chunk;  // 0: none
  float softmax_scale;
  bool fp8;                             // e4m3 cache, else bf16
  const void* q;                        // [rows, num_heads, 128] bf16
  int64_t q_row_stride, q_head_stride;  // elements
  const void* k_cache;                  // [num_pages, page_size, kv_heads, 128], contiguous
  const void* v_cache;
  const int* cu_seqlens_q;  // [batch + 1]
  const int* seqlens_k;     // [batch]
  const int* block_table;   // [batch, max_pages]
  int64_t table_stride;     // elements
  const float* k_scale;     // [kv_heads]; null: 1
  const float* v_scale;
  void* out;        // [rows, num_heads, 128] bf16, contiguous
  float* lse;       // [num_heads, rows]
  int* plan;        // of flash_prefill_plan_words(), 16-byte aligned
  bool planned;     // the plan has been made
  float* partials;  // workspace of flash_prefill_partial_words()
  float* anchors;   // workspace of flash_prefill_anchor_words()
  uint32_t* error;  // sticky error word

  // Of a launch on this device: size_flash_prefill() fills them in.
  int64_t max_items;
  int ctas;

  // Keys that a row of the block table has a place for.
  L4K_HD int64_t capacity() const { return int64_t{max_pages} * page_size; }

  // Whether items may be cut, which leaves partial results.
  L4K_HD bool cuts() const { return may_cut(max_items, kv_heads, ctas); }

  L4K_HD PrefillShape shape() const {
    const int64_t keys = capacity(), limit = 0x7fffffff;  // no length is more
    return {.rows = rows,
            .batch = batch,
            .max_seqlen_q = max_seqlen_q,
            .num_heads = num_heads,
            .kv_heads = kv_heads,
            .chunk = static_cast<int>(chunk),
            .capacity = static_cast<int>(keys < limit ? keys : limit),
            .ctas = ctas};
  }
};

void size_flash_prefill(FlashPrefillParams& params);
int64_t flash_prefill_plan_words(const FlashPrefillParams& params);
int64_t flash_prefill_partial_words(const FlashPrefillParams& params);
int64_t flash_prefill_anchor_words(const FlashPrefillParams& params);

// Of the lengths alone: needs no q, no cache and no results.
cudaError_t flash_prefill_plan(const FlashPrefillParams& params, cudaStream_t stream);
// By params.plan, which it makes first unless it is there.
cudaError_t flash_prefill(const FlashPrefillParams& params, cudaStream_t stream);

}  // namespace l4k
