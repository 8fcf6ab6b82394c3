// out = softmax(scale * q k^T) v for a few queries at the end of each sequence, over a paged cache;
// or first q, k = rotate, normalise, scale (qkv) and the cache takes k and v, in the same launch
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/flash_decode/plan.h"
#include "tile/rope.h"

namespace l4k {

struct FlashDecodePlanParams {
  DecodePlanHeader header;
  const int* seqlens_k;  // [batch]
  int* plan;             // [kDecodeLengths + batch]
};

struct FlashDecodeParams {
  int batch;                 // B
  int tokens;                // S, queries of a sequence
  int kv_heads, group;       // Hkv, q heads per KV head
  int chunk;                 // 0: none
  int num_pages, page_size;  // page_size a multiple of 16
  int max_pages;             // columns of the block table
  BlockDivisor page_blocks;  // key blocks of a page
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
  void* out;        // [B, S, Hkv * group, 128] bf16 contiguous
  float* lse;       // [B, Hkv * group, S]
  float* partials;  // workspace of flash_decode_workspace() 4-byte words
  int* plan;        // made for this call; its counters are written
  bool makes_plan;  // by a launch of its own before
  bool settled;     // what no token of this step writes was complete before the launch before
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

// What decides how a call is planned.
struct DecodeCall {
  int batch, kv_heads, group, tokens, chunk;
  int64_t addressed;  // keys, by a row of the block table
};

DecodeShape flash_decode_shape(const DecodeCall& call);
int64_t flash_decode_workspace(const FlashDecodeParams& params);
cudaError_t flash_decode_plan(const FlashDecodePlanParams& params, cudaStream_t stream);
cudaError_t flash_decode(const FlashDecodeParams& params, cudaStream_t stream);
cudaError_t flash_decode_append(const FlashDecodeAppendParams& params, cudaStream_t stream);

}  // namespace l4k
