// Router logits to experts, and the order in which the expert GEMMs see the tokens
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

struct MoeRouteParams {
  int64_t tokens;         // T; T * k < 2^31
  int num_experts;        // E <= 256
  int top_k;              // k <= 8
  const void* logits;     // [T, E] bf16 or float32
  int* topk_ids;          // [T, k] by descending logit
  float* topk_weights;    // [T, k] sigmoid(logit)
  float* row_scale;       // [T * k] topk_weights in permuted order
  int* expert_offsets;    // [E + 1]
  int* permutation;       // [T * k] permuted row -> t * k + j
  int* inverse;           // [T * k] t * k + j -> permuted row
  int64_t logits_stride;  // elements between tokens
  int* counts;            // workspace of moe_route_workspace() ints: [tiles, E]
  uint32_t* error;        // tile/report.cuh
  bool float32;           // logits
};

int64_t moe_route_workspace(int64_t tokens, int num_experts);
cudaError_t moe_route(const MoeRouteParams& params, cudaStream_t stream);

}  // namespace l4k
