// out = softmax(scale * q k^T) v for a few queries at the end of each sequence, over a paged cache;
// or first q, k = rotate, normalise, scale (qkv) and the cache takes k and v, in the same launch
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/rope.h"

namespace l4k {

struct FlashDecodeParams {
  int batch;                 // B
  int tokens;                // S, queries of a sequence
  int kv_heads, group;       // Hkv, q heads per KV head
  int chunk;                 // 0: none
  int num_pages, page_size;  // page_size a multiple of 16
  int max_pages;             // columns of the block table
  const void* q;             // [B, S, Hkv * group, 128] bf16
  int64_t q_batch_stride;    // elements
  int64_t q_token_stride;
  int64_t q_head_stride;
  const void* k_cache;  // [num_pages, page_size, Hkv, 128] bf16 or e4m3, contiguous
  const void* v_cache;
  const int* seqlens_k;    // [B] keys of a sequence, the queries' own included
  const int* block_table;  // [B, max_pages]
  int64_t table_stride;    // elements
  const float* k_scale;    // [Hkv] or null
  const float* v_scale;
  void* out;                 // [B, S, Hkv * group, 128] bf16 contiguous
  float* lse;                // [B, Hkv * group, S]
  float* partials;           // workspace of flash_decode_workspace() 4-byte words
  uint64_t nonce;            // 48 bits that no other launch has
  float softmax_scale_log2;  // times log2(e)
  uint32_t* error;           // tile/report.cuh
  bool fp8_cache;
};

struct FlashDecodeAppendParams {
  FlashDecodeParams attention;  // without q
  const void* qkv;              // [B * S, (Hkv * group + 2 Hkv) * 128] bf16, 16-byte aligned rows
  int64_t qkv_stride;           // elements between tokens, a multiple of 8
  const int64_t* positions;     // [B * S]
  const int64_t* slot_mapping;  // [B * S] where block_table puts the key; -1: it is there already
  HeadRule rule;
  void* k_cache;  // attention's
  void* v_cache;
};

int64_t flash_decode_workspace(const FlashDecodeParams& params);
cudaError_t flash_decode(const FlashDecodeParams& params, cudaStream_t stream);
cudaError_t flash_decode_append(const FlashDecodeAppendParams& params, cudaStream_t stream);

}  // namespace l4k
