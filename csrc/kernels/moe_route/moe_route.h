// Router logits to experts, and the order in which the expert GEMMs see the tokens
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

struct MoeRouteParams {
  int64_t tokens;         // T; T * C < 2^31
  int num_experts;        // E <= 256
  int top_k;              // k <= 8
  bool shared_expert;     // expert E takes every token as well: C = k + 1 choices a token, else k
  const void* logits;     // [T, E] bf16 or float32
  int* topk_ids;          // [T, C] by descending logit, then E
  float* topk_weights;    // [T, C] sigmoid(logit), then 1
  float* row_scale;       // [T * C] topk_weights in permuted order
  int* expert_offsets;    // [E + 1], of the shared expert too: [E + 2]
  int* permutation;       // [T * C] permuted row -> t * C + j
  int* inverse;           // [T * C] t * C + j -> permuted row
  int64_t logits_stride;  // elements between tokens
  int* counts;            // workspace of moe_route_workspace() ints: [tiles, E]
  uint32_t* error;        // tile/report.cuh
  bool float32;           // logits

  __host__ __device__ int choices() const { return top_k + shared_expert; }
};

int64_t moe_route_workspace(int64_t tokens, int num_experts);
cudaError_t moe_route(const MoeRouteParams& params, cudaStream_t stream);

}  // namespace l4k
