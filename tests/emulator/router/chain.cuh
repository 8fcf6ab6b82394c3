// One mutant's launches, included once for each in a namespace of its own: copies of the tokens, the
// norm's and the router's weights, then the router; all dependent, with the same workspace and nonce
// again and again.

#include "../kernels/copy.cuh"

namespace l4k {

inline MoeRouterParams router_params(const World& w) {
  MoeRouterParams p{};
  p.routing = {.tokens = kTokens,
               .num_experts = kExperts,
               .top_k = kTopK,
               .shared_expert = true,
               .topk_ids = w.ids.data,
               .topk_weights = w.weights.data,
               .row_scale = w.row_scale.data,
               .expert_offsets = w.offsets.data,
               .permutation = w.permutation.data,
               .inverse = w.inverse.data,
               .error = w.error.data};
  p.width = kWidth;
  p.x = w.x.data;
  p.norm_weight = w.norm.data;
  p.router_weight = w.router.data;
  p.normed = w.normed.data;
  p.x_stride = kWidth;
  p.eps = kEps;
  p.workspace = w.workspace.data;
  p.nonce = 0x1234567;
  return p;
}

// Groups of one expert tile each where they are to be `apart`, else one of both.
inline bool route(const World& w, bool apart) {
  const RouterPlan plan = plan_router(kTokens, kWidth, kExperts, apart ? 12 : 6);
  const LaunchConfig config{.grid = dim3(plan.slices, plan.groups, plan.token_tiles),
                            .block = dim3(kRouterThreads)};
  return plan.groups == 1 + apart &&
         launch(moe_router_kernel, config, nullptr, router_params(w), plan) == cudaSuccess;
}

// False if a report has ended the run.
inline bool run_once(const World& w, const std::vector<uint16_t>& x, bool apart) {
  return upload(x, w.asked) && poison(w.x) && poison(w.norm) && poison(w.router) &&
         poison(w.normed) && poison(w.ids) && poison(w.offsets) && poison(w.permutation) &&
         poison(w.inverse) && poison(w.weights) && poison(w.row_scale) &&
         copy(w.given_norm, w.norm) && copy(w.given_router, w.router) && copy(w.asked, w.x) &&
         route(w, apart) && cudaDeviceSynchronize() == cudaSuccess;
}

inline void run_chain(std::vector<float>& results, bool original) {
  const World& w = world();
  if (!poison(w.workspace)) return;
  for (uint32_t salt : {1, 2, 3, 4}) {
    const std::vector<uint16_t> x = numbers(kTokens * kWidth, salt);
    if (!run_once(w, x, salt > 2)) return;
    for (uint16_t value : w.normed.download()) results.push_back(from_bf16(value));
    for (const Buffer<float>* some : {&w.weights, &w.row_scale})
      for (float value : some->download()) results.push_back(value);
    for (const Buffer<int>* some : {&w.ids, &w.offsets, &w.permutation, &w.inverse})
      for (int value : some->download()) results.push_back(static_cast<float>(value));
    if (original) check_results(x);
  }
}

}  // namespace l4k
