#include "kernels/moe_router/moe_router.cuh"

#include "host/device.h"
#include "host/launch.h"

namespace l4k {

int64_t moe_router_workspace(int64_t tokens, int width, int num_experts) {
  const RouterPlan plan = plan_router(static_cast<int>(tokens), width, num_experts, sm_count());
  return plan.counter_words() + plan.slices * tokens * plan.padded_experts();
}

cudaError_t moe_router(const MoeRouterParams& params, cudaStream_t stream) {
  if (params.routing.tokens > kRouterTokens || params.width > kNormMaxWidth)
    return cudaErrorInvalidValue;
  const RouterPlan plan = plan_router(static_cast<int>(params.routing.tokens), params.width,
                                      params.routing.num_experts, sm_count());
  const LaunchConfig config{.grid = dim3(plan.slice_ctas, plan.groups, plan.token_tiles),
                            .block = dim3(kRouterThreads)};
  return launch(moe_router_kernel, config, stream, params, plan);
}

}  // namespace l4k
