#include <tuple>

#include "bindings/arguments.h"
#include "kernels/moe_combine/moe_combine.h"
#include "kernels/moe_permute/moe_permute.h"
#include "kernels/moe_route/moe_route.h"
#include "kernels/moe_route/plan.h"
#include "kernels/quantize_fp8/quantize_fp8.h"

namespace l4k::binding {

#define L4K_CHECK_TOP_K()                                                                     \
  L4K_REQUIRE(top_k >= 1 && top_k <= kRouteMaxTopK, "expected top_k in 1 to ", kRouteMaxTopK, \
              ", got ", top_k)

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> moe_route(const Tensor& logits,
                                                                     int64_t top_k) {
  const bool float32 = logits.scalar_type() == ScalarType::Float;
  if (!float32) L4K_CHECK_DTYPE(logits, BFloat16);
  L4K_CHECK_SHAPE(logits, -1, -1);
  const int64_t tokens = logits.size(0), experts = logits.size(1), choices = tokens * top_k;
  L4K_REQUIRE(experts >= 1 && experts <= kRouteMaxExperts, "expected 1 to ", kRouteMaxExperts,
              " experts, got logits ", describe(logits));
  L4K_REQUIRE(top_k >= 1 && top_k <= kRouteMaxTopK && top_k <= experts, "expected top_k in 1 to ",
              kRouteMaxTopK, ", at most the number of experts (", experts, "), got ", top_k);
  L4K_REQUIRE(experts == 1 || logits.stride(1) == 1,
              "expected the last dimension of logits to be contiguous, got ", describe(logits),
              "; call contiguous() first");
  L4K_REQUIRE(choices < int64_t{1} << 31, "expected fewer than 2^31 choices, got ", choices);
  Device device(logits);
  Tensor ids = empty_like(logits, {tokens, top_k}, ScalarType::Int);
  Tensor weights = empty_like(logits, {tokens, top_k}, ScalarType::Float);
  Tensor row_scale = empty_like(logits, {choices}, ScalarType::Float);
  Tensor offsets = empty_like(logits, {experts + 1}, ScalarType::Int);
  Tensor permutation = empty_like(logits, {choices}, ScalarType::Int);
  Tensor inverse = empty_like(logits, {choices}, ScalarType::Int);
  Tensor counts = workspace(logits, moe_route_workspace(tokens, static_cast<int>(experts)));
  MoeRouteParams params{.tokens = tokens,
                        .num_experts = static_cast<int>(experts),
                        .top_k = static_cast<int>(top_k),
                        .logits = pointer(logits),
                        .topk_ids = pointer<int>(ids),
                        .topk_weights = pointer<float>(weights),
                        .row_scale = pointer<float>(row_scale),
                        .expert_offsets = pointer<int>(offsets),
                        .permutation = pointer<int>(permutation),
                        .inverse = pointer<int>(inverse),
                        .logits_stride = logits.stride(0),
                        .counts = pointer<int>(counts),
                        .error = error_word(),
                        .float32 = float32};
  L4K_LAUNCH(l4k::moe_route(params, device.stream()));
  return {ids, weights, row_scale, offsets, permutation, inverse};
}

Tensor moe_permute(const Tensor& x, const Tensor& permutation, int64_t top_k) {
  L4K_CHECK_SHAPE(x, -1, -1);
  L4K_CHECK_TOP_K();
  const int64_t rows = x.size(0) * top_k, row_bytes = x.size(1) * x.element_size();
  L4K_CHECK_TABLE(permutation, Int, rows);
  L4K_CHECK_ROWS(x);
  L4K_REQUIRE(row_bytes % 16 == 0, "expected the rows of x to be a multiple of 16 bytes, got ",
              describe(x));
  Device device(x);
  Tensor out = empty_like(x, {rows, x.size(1)});
  MoePermuteParams params{.rows = rows,
                          .row_vectors = row_bytes / 16,
                          .top_k = static_cast<int>(top_k),
                          .x = pointer(x),
                          .permutation = pointer<int>(permutation),
                          .out = pointer(out),
                          .x_stride = static_cast<int64_t>(x.stride(0) * x.element_size() / 16),
                          .error = error_word()};
  L4K_LAUNCH(l4k::moe_permute(params, device.stream()));
  return out;
}

std::tuple<Tensor, Tensor> moe_permute_fp8(const Tensor& x, const Tensor& permutation,
                                           int64_t top_k, const std::string& scaling) {
  L4K_CHECK_DTYPE(x, BFloat16);
  L4K_CHECK_SHAPE(x, -1, -1);
  L4K_CHECK_TOP_K();
  const int64_t rows = x.size(0) * top_k, width = x.size(1);
  L4K_CHECK_TABLE(permutation, Int, rows);
  L4K_CHECK_ROWS(x);
  L4K_REQUIRE(width % 8 == 0 && width >= 8 && width <= kQuantizeMaxRow,
              "expected the last dimension of x to be a multiple of 8, at most ", kQuantizeMaxRow,
              ", got ", describe(x));
  L4K_CHECK_ROW_SCALING(width);
  Device device(x);
  auto [q, scale] = empty_fp8(x, kind, rows, width);
  QuantizeRowsParams params{.rows = rows,
                            .x_rows = x.size(0),
                            .width = static_cast<int>(width),
                            .top_k = static_cast<int>(top_k),
                            .x = pointer(x),
                            .permutation = pointer<int>(permutation),
                            .q = pointer(q),
                            .scale = pointer<float>(scale),
                            .x_stride = x.stride(0),
                            .error = error_word(),
                            .scaling = kind};
  L4K_LAUNCH(l4k::quantize_rows(params, device.stream()));
  return {q, scale};
}

Tensor moe_combine(const Tensor& y, const Tensor& inverse, int64_t top_k,
                   const std::optional<Tensor>& maybe_shared,
                   const std::optional<Tensor>& maybe_residual) {
  L4K_CHECK_DTYPE(y, BFloat16);
  L4K_CHECK_SHAPE(y, -1, -1);
  L4K_CHECK_TOP_K();
  const int64_t rows = y.size(0), tokens = rows / top_k, width = y.size(1);
  L4K_CHECK_MULTIPLE(rows, top_k);
  L4K_CHECK_MULTIPLE(width, 8);
  L4K_CHECK_TABLE(inverse, Int, rows);
  L4K_CHECK_ROWS(y);
  L4K_CHECK_MAYBE_ROWS(shared, tokens, width);
  L4K_CHECK_MAYBE_ROWS(residual, tokens, width);
  Device device(y);
  Tensor out = empty_like(y, {tokens, width});
  MoeCombineParams params{
      .tokens = tokens,
      .width = width,
      .top_k = static_cast<int>(top_k),
      .y = pointer(y),
      .inverse = pointer<int>(inverse),
      .shared = optional_pointer(maybe_shared),
      .residual = optional_pointer(maybe_residual),
      .out = pointer(out),
      .y_stride = y.stride(0),
      .shared_stride = maybe_shared.has_value() ? maybe_shared->stride(0) : 0,
      .residual_stride = maybe_residual.has_value() ? maybe_residual->stride(0) : 0,
      .error = error_word()};
  L4K_LAUNCH(l4k::moe_combine(params, device.stream()));
  return out;
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  L4K_IMPL(m, "moe_route", moe_route);
  L4K_IMPL(m, "moe_permute", moe_permute);
  L4K_IMPL(m, "moe_permute_fp8", moe_permute_fp8);
  L4K_IMPL(m, "moe_combine", moe_combine);
}
