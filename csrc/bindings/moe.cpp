#include <tuple>

#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "host/nonce.h"
#include "kernels/moe_combine/moe_combine.h"
#include "kernels/moe_permute/moe_permute.h"
#include "kernels/moe_route/moe_route.h"
#include "kernels/moe_router/moe_router.h"
#include "kernels/moe_router/plan.h"
#include "kernels/quantize_fp8/quantize_fp8.h"

namespace l4k::binding {

namespace {

void check_top_k(const Call& call, int64_t top_k) {
  call.require(top_k >= 1 && top_k <= kRouteMaxChoices, "expected top_k in 1 to ", kRouteMaxChoices,
               ", got ", top_k);
}

// Of a token's rows and what is added to them; all but the result.
MoeCombineParams check_combine(const Call& call, const Tensor& y, const Tensor& inverse,
                               int64_t top_k, const OptionalTensor& shared,
                               const OptionalTensor& residual) {
  check_top_k(call, top_k);
  const Rows in = check_rows(call, {"y", y}, ScalarType::BFloat16, {"T * k", "D"});
  call.require(in.count % top_k == 0, "expected the rows of y to be a multiple of top_k, got ", y);
  call.require(in.width % 8 == 0, "expected the last dimension of y to be a multiple of 8, got ",
               y);
  const int* order = check_list<int>(call, {"inverse", inverse}, {in.count});
  const int64_t tokens = in.count / top_k;
  const Rows shared_rows =
      check_optional_rows(call, {"shared", shared}, ScalarType::BFloat16, {tokens, in.width});
  const Rows residual_rows =
      check_optional_rows(call, {"residual", residual}, ScalarType::BFloat16, {tokens, in.width});
  return {.tokens = tokens,
          .width = in.width,
          .top_k = static_cast<int>(top_k),
          .y = in.data,
          .inverse = order,
          .shared = shared_rows.data,
          .residual = residual_rows.data,
          .out = nullptr,
          .y_stride = in.stride,
          .shared_stride = shared_rows.stride,
          .residual_stride = residual_rows.stride,
          .error = error_word()};
}

// The same with a norm; all but the results.
MoeCombineNormParams check_combine_norm(const Call& call, const Tensor& y, const Tensor& inverse,
                                        int64_t top_k, const Tensor& norm_weight, double eps,
                                        const OptionalTensor& residual) {
  const MoeCombineParams combine = check_combine(call, y, inverse, top_k, std::nullopt, residual);
  call.require(combine.width >= 8 && combine.width <= kNormMaxWidth,
               "expected the last dimension of y to be a multiple of 8, at most ", kNormMaxWidth,
               ", got ", y);
  const Rows weight =
      check_rows(call, {"norm_weight", norm_weight}, ScalarType::BFloat16, {combine.width});
  return {.combine = combine,
          .weight = weight.data,
          .eps = static_cast<float>(eps),
          .normed = nullptr,
          .q = nullptr,
          .scale = nullptr};
}

// Each of `tokens` goes to the best `top_k` of `experts`, which are what `counted` says.
struct RoutingSizes {
  int64_t tokens, experts, top_k;
  bool shared_expert;
  int64_t choices, rows;  // of a token, and of all

  RoutingSizes(const Call& call, int64_t tokens, int64_t experts, const char* counted,
               int64_t top_k, bool shared_expert)
      : tokens(tokens),
        experts(experts),
        top_k(top_k),
        shared_expert(shared_expert),
        choices(top_k + shared_expert),
        rows(tokens * choices) {
    // A shared expert joins them in the products.
    const int64_t most = kRouteMaxExperts - shared_expert;
    call.require(experts >= 1 && experts <= most, "expected 1 to ", most, " experts (", counted,
                 "), got ", experts);
    call.require(top_k >= 1 && top_k <= kRouteMaxTopK && top_k <= experts,
                 "expected top_k in 1 to ", kRouteMaxTopK, ", at most the number of experts (",
                 experts, "), got ", top_k);
    call.require(rows < kIntLimit, "expected fewer than 2^31 choices, got ", rows);
  }
};

struct RoutingResults {
  Tensor ids, weights, row_scale, offsets, permutation, inverse;
  Routing routing;

  RoutingResults(const Call& call, const RoutingSizes& s)
      : ids(call.empty({s.tokens, s.choices}, ScalarType::Int)),
        weights(call.empty({s.tokens, s.choices}, ScalarType::Float)),
        row_scale(call.empty({s.rows}, ScalarType::Float)),
        offsets(call.empty({s.experts + s.shared_expert + 1}, ScalarType::Int)),
        permutation(call.empty({s.rows}, ScalarType::Int)),
        inverse(call.empty({s.rows}, ScalarType::Int)),
        routing{.tokens = s.tokens,
                .num_experts = static_cast<int>(s.experts),
                .top_k = static_cast<int>(s.top_k),
                .shared_expert = s.shared_expert,
                .topk_ids = pointer<int>(ids),
                .topk_weights = pointer<float>(weights),
                .row_scale = pointer<float>(row_scale),
                .expert_offsets = pointer<int>(offsets),
                .permutation = pointer<int>(permutation),
                .inverse = pointer<int>(inverse),
                .error = error_word()} {}
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> moe_route(const Tensor& logits,
                                                                     int64_t top_k,
                                                                     bool shared_expert) {
  const Call call("moe_route", {"logits", logits});
  const Logits in = check_logits(call, {"logits", logits});
  const RoutingResults results(
      call, {call, in.rows, in.width, "columns of logits", top_k, shared_expert});
  Tensor counts = call.workspace(moe_route_workspace(in.rows, static_cast<int>(in.width)));
  const MoeRouteParams params{.routing = results.routing,
                              .logits = in.data,
                              .logits_stride = in.stride,
                              .counts = pointer<int>(counts),
                              .float32 = in.float32};
  call.launch(l4k::moe_route, params);
  return {results.ids,     results.weights,     results.row_scale,
          results.offsets, results.permutation, results.inverse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> moe_router(
    const Tensor& x, const Tensor& norm_weight, const Tensor& router_weight, int64_t num_experts,
    double eps, int64_t top_k, bool shared_expert) {
  const Call call("moe_router", {"x", x});
  const Rows in = check_rows(call, {"x", x}, ScalarType::BFloat16, {"T", "D"});
  call.require(in.count <= kRouterTokens, "expected at most ", kRouterTokens, " tokens, got x ", x);
  call.require(in.width % 8 == 0 && in.width >= 8 && in.width <= kNormMaxWidth,
               "expected the last dimension of x to be a multiple of 8, at most ", kNormMaxWidth,
               ", got ", x);
  const Rows norm =
      check_rows(call, {"norm_weight", norm_weight}, ScalarType::BFloat16, {in.width});
  const Argument router("router_weight", router_weight);
  const Rows experts = check_rows(call, router, ScalarType::BFloat16, {"E", in.width});
  call.require_contiguous(router);
  call.require(num_experts <= experts.count, "expected router_weight to have a row for each of ",
               num_experts, " experts (num_experts), got ", router_weight);
  const RoutingResults results(call,
                               {call, in.count, num_experts, "num_experts", top_k, shared_expert});
  Tensor normed = call.empty({in.count, in.width}, ScalarType::BFloat16);
  const int width = static_cast<int>(in.width);
  Tensor workspace =
      call.workspace(moe_router_workspace(in.count, width, static_cast<int>(num_experts)));
  const MoeRouterParams params{.routing = results.routing,
                               .width = width,
                               .x = in.data,
                               .norm_weight = norm.data,
                               .router_weight = experts.data,
                               .normed = pointer(normed),
                               .x_stride = in.stride,
                               .eps = static_cast<float>(eps),
                               .workspace = pointer(workspace),
                               .nonce = launch_nonce()};
  call.launch(l4k::moe_router, params);
  return {normed,          results.ids,         results.weights, results.row_scale,
          results.offsets, results.permutation, results.inverse};
}

Tensor moe_permute(const Tensor& x, const Tensor& permutation, int64_t top_k) {
  const Call call("moe_permute", {"x", x});
  check_top_k(call, top_k);
  const Rows in = check_rows(call, {"x", x}, x.scalar_type(), {"T", "D"});  // any dtype
  const auto bytes = static_cast<int64_t>(x.element_size());
  call.require(in.width * bytes % 16 == 0,
               "expected the rows of x to be a multiple of 16 bytes, got ", x);
  const int64_t rows = in.count * top_k;
  const int* order = check_list<int>(call, {"permutation", permutation}, {rows});
  Tensor out = call.empty({rows, in.width}, x.scalar_type());
  const MoePermuteParams params{.rows = rows,
                                .row_vectors = in.width * bytes / 16,
                                .top_k = static_cast<int>(top_k),
                                .x = in.data,
                                .permutation = order,
                                .out = pointer(out),
                                .x_stride = in.stride * bytes / 16,
                                .error = error_word()};
  call.launch(l4k::moe_permute, params);
  return out;
}

std::tuple<Tensor, Tensor> moe_permute_fp8(const Tensor& x, const Tensor& permutation,
                                           int64_t top_k, const std::string& scaling) {
  const Call call("moe_permute_fp8", {"x", x});
  check_top_k(call, top_k);
  const Rows in = check_rows(call, {"x", x}, ScalarType::BFloat16, {"T", "D"});
  call.require(in.width % 8 == 0 && in.width >= 8 && in.width <= kQuantizeMaxRow,
               "expected the last dimension of x to be a multiple of 8, at most ", kQuantizeMaxRow,
               ", got ", x);
  const Scaling kind = check_row_scaling(call, scaling, in.width);
  const int64_t rows = in.count * top_k;
  const int* order = check_list<int>(call, {"permutation", permutation}, {rows});
  auto [q, scale] = empty_fp8(call, kind, rows, in.width);
  const QuantizeRowsParams params{.rows = rows,
                                  .x_rows = in.count,
                                  .width = static_cast<int>(in.width),
                                  .top_k = static_cast<int>(top_k),
                                  .x = in.data,
                                  .permutation = order,
                                  .q = pointer(q),
                                  .scale = pointer<float>(scale),
                                  .x_stride = in.stride,
                                  .error = error_word(),
                                  .scaling = kind};
  call.launch(l4k::quantize_rows, params);
  return {q, scale};
}

Tensor moe_combine(const Tensor& y, const Tensor& inverse, int64_t top_k,
                   const OptionalTensor& shared, const OptionalTensor& residual) {
  const Call call("moe_combine", {"y", y});
  MoeCombineParams params = check_combine(call, y, inverse, top_k, shared, residual);
  Tensor out = call.empty({params.tokens, params.width}, ScalarType::BFloat16);
  params.out = pointer(out);
  call.launch(l4k::moe_combine, params);
  return out;
}

std::tuple<Tensor, Tensor> moe_combine_norm(const Tensor& y, const Tensor& inverse, int64_t top_k,
                                            const Tensor& norm_weight, double eps,
                                            const OptionalTensor& residual) {
  const Call call("moe_combine_norm", {"y", y});
  MoeCombineNormParams params =
      check_combine_norm(call, y, inverse, top_k, norm_weight, eps, residual);
  const int64_t tokens = params.combine.tokens, width = params.combine.width;
  Tensor x = call.empty({tokens, width}, ScalarType::BFloat16);
  Tensor normed = call.empty({tokens, width}, ScalarType::BFloat16);
  params.combine.out = pointer(x);
  params.normed = pointer(normed);
  call.launch(l4k::moe_combine_norm, params);
  return {x, normed};
}

std::tuple<Tensor, Tensor, Tensor> moe_combine_norm_fp8(const Tensor& y, const Tensor& inverse,
                                                        int64_t top_k, const Tensor& norm_weight,
                                                        double eps,
                                                        const OptionalTensor& residual) {
  const Call call("moe_combine_norm_fp8", {"y", y});
  MoeCombineNormParams params =
      check_combine_norm(call, y, inverse, top_k, norm_weight, eps, residual);
  const int64_t tokens = params.combine.tokens, width = params.combine.width;
  Tensor x = call.empty({tokens, width}, ScalarType::BFloat16);
  auto [q, scale] = empty_fp8(call, kScalingRow, tokens, width);
  params.combine.out = pointer(x);
  params.q = pointer(q);
  params.scale = pointer<float>(scale);
  call.launch(l4k::moe_combine_norm, params);
  return {x, q, scale};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::moe_route>(m, "moe_route");
  l4k::bind<l4k::binding::moe_router>(m, "moe_router");
  l4k::bind<l4k::binding::moe_permute>(m, "moe_permute");
  l4k::bind<l4k::binding::moe_permute_fp8>(m, "moe_permute_fp8");
  l4k::bind<l4k::binding::moe_combine>(m, "moe_combine");
  l4k::bind<l4k::binding::moe_combine_norm>(m, "moe_combine_norm");
  l4k::bind<l4k::binding::moe_combine_norm_fp8>(m, "moe_combine_norm_fp8");
}
