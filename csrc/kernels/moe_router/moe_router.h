// RMSNorm, router product, top-k and routing in one launch
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/norm.h"
#include "tile/route.h"

namespace l4k {

struct MoeRouterParams {
  Routing routing;            // T <= kRouterTokens (plan.h)
  int width;                  // D, a multiple of 8, at most kNormMaxWidth
  const void* x;              // [T, D] bf16, 16-byte aligned rows
  const void* norm_weight;    // [D] bf16
  const void* router_weight;  // [E, D] bf16, contiguous; more rows may follow
  void* normed;               // [T, D] bf16 contiguous
  int64_t x_stride;           // elements between rows, a multiple of 8
  float eps;
  void* workspace;  // of moe_router_workspace() words
  uint64_t nonce;   // host/nonce.h
};

// Words: the partial logits of each slice of D, and counters of the CTAs that have left theirs.
int64_t moe_router_workspace(int64_t tokens, int width, int num_experts);
cudaError_t moe_router(const MoeRouterParams& params, cudaStream_t stream);

}  // namespace l4k
