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

// As on a GPU of 6 SMs: one CTA for a slice and a tile of tokens. Of 12: one for each tile of experts, too.
// Of one: one that goes through all slices.
inline bool route(const World& w, int sms) {
  const RouterPlan plan = plan_router(kTokens, kWidth, kExperts, sms);
  const LaunchConfig config{.grid = dim3(plan.slice_ctas, plan.groups, plan.token_tiles),
                            .block = dim3(kRouterThreads)};
  return plan.groups == (sms == 12 ? 2 : 1) && plan.slice_ctas == (sms == 1 ? 1 : plan.slices) &&
         launch(moe_router_kernel, config, nullptr, router_params(w), plan) == cudaSuccess;
}

// False if a report has ended the run.
inline bool run_once(const World& w, const std::vector<uint16_t>& x, int sms) {
  return upload(x, w.asked) && poison(w.x) && poison(w.norm) && poison(w.router) &&
         poison(w.normed) && poison(w.ids) && poison(w.offsets) && poison(w.permutation) &&
         poison(w.inverse) && poison(w.weights) && poison(w.row_scale) &&
         copy(w.given_norm, w.norm) && copy(w.given_router, w.router) && copy(w.asked, w.x) &&
         route(w, sms) && cudaDeviceSynchronize() == cudaSuccess;
}

inline void run_chain(std::vector<float>& results, bool original) {
  const World& w = world();
  if (!poison(w.workspace)) return;
  uint32_t salt = 0;
  for (int sms : {6, 12, 1}) {
    const std::vector<uint16_t> x = numbers(kTokens * kWidth, ++salt);
    if (!run_once(w, x, sms)) return;
    for (uint16_t value : w.normed.download()) results.push_back(from_bf16(value));
    for (const Buffer<float>* some : {&w.weights, &w.row_scale})
      for (float value : some->download()) results.push_back(value);
    for (const Buffer<int>* some : {&w.ids, &w.offsets, &w.permutation, &w.inverse})
      for (int value : some->download()) results.push_back(static_cast<float>(value));
    if (original) check_results(x);
  }
}

}  // namespace l4k
