#include "kernels/moe_route/moe_route.cuh"

#include "host/device.h"
#include "host/launch.h"

namespace l4k {

int64_t moe_route_workspace(int64_t tokens, int num_experts) {
  if (tokens <= kRouteOneLaunchTokens) return 0;
  return int64_t{plan_route(tokens, sm_count()).tiles} * num_experts;
}

cudaError_t moe_route(const MoeRouteParams& params, cudaStream_t stream) {
  const RoutePlan plan = plan_route(params.routing.tokens, sm_count());
  if (params.routing.tokens * params.routing.choices() >= int64_t{1} << 31)
    return cudaErrorInvalidValue;
  LaunchConfig config{.grid = dim3(plan.tiles), .block = dim3(kRouteThreads)};
  // Zero tokens still have offsets.
  if (params.routing.tokens <= kRouteOneLaunchTokens)
    return params.float32 ? launch(moe_route_small_kernel<float>, config, stream, params)
                          : launch(moe_route_small_kernel<__nv_bfloat16>, config, stream, params);
  cudaError_t error =
      params.float32 ? launch(moe_route_choose_kernel<float>, config, stream, params, plan)
                     : launch(moe_route_choose_kernel<__nv_bfloat16>, config, stream, params, plan);
  if (error != cudaSuccess) return error;
  return launch(moe_route_rank_kernel, config, stream, params, plan);
}

}  // namespace l4k
