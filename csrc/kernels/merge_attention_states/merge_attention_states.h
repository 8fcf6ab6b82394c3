// out = sum of 2^(lse_n - lse) out_n, lse = log of the sum of exp(lse_n), over N parts of the keys
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

struct MergeAttentionStatesParams {
  int64_t rows;       // B * S * H
  int parts;          // N
  int tokens, heads;  // S, H
  const void* outs;   // [N, B, S, H, 128] bf16 contiguous
  const float* lses;  // [N, B, H, S] contiguous
  void* out;          // [B, S, H, 128]
  float* lse;         // [B, H, S]
};

cudaError_t merge_attention_states(const MergeAttentionStatesParams& params, cudaStream_t stream);

}  // namespace l4k
