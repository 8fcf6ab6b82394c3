// Router logits to experts, and the order in which the expert GEMMs see the tokens
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/route.h"

namespace l4k {

struct MoeRouteParams {
  Routing routing;
  const void* logits;     // [T, E] bf16 or float32
  int64_t logits_stride;  // elements between tokens
  int* counts;            // workspace of moe_route_workspace() ints: [tiles, E]
  bool float32;           // logits
};

int64_t moe_route_workspace(int64_t tokens, int num_experts);
cudaError_t moe_route(const MoeRouteParams& params, cudaStream_t stream);

}  // namespace l4k
