// q, k = rotate, normalise, scale (qkv);  k_cache[slot] = k;  v_cache[slot] = v
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/rope.h"

namespace l4k {

struct RopeCacheParams {
  int64_t tokens;               // T
  int num_heads;                // Hq
  int kv_heads;                 // Hkv
  int64_t num_slots;            // P * page_size
  const void* qkv;              // [T, (Hq + 2 Hkv) * 128] bf16, 16-byte aligned rows
  const int64_t* positions;     // [T]
  const int64_t* slot_mapping;  // [T], -1: K and V are not written
  HeadRule rule;
  const float* k_scale;  // [Hkv] or null; only with an e4m3 cache
  const float* v_scale;
  void* q;        // [T, Hq, 128] bf16 contiguous
  void* k_cache;  // [P * page_size, Hkv, 128] bf16 or e4m3, contiguous
  void* v_cache;
  int64_t qkv_stride;  // elements between tokens, a multiple of 8
  uint32_t* error;     // tile/report.cuh
  bool fp8_cache;
};

cudaError_t rope_cache(const RopeCacheParams& params, cudaStream_t stream);

}  // namespace l4k
