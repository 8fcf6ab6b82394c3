#include <tuple>

#include "bindings/arguments.h"
#include "kernels/rms_norm/rms_norm.h"

namespace l4k::binding {

#define L4K_CHECK_NORM()                                                          \
  L4K_CHECK_DTYPE(x, BFloat16);                                                   \
  L4K_CHECK_DTYPE(weight, BFloat16);                                              \
  L4K_REQUIRE(x.dim() >= 1, "expected x to be [..., D], got ", describe(x));      \
  const int64_t width = x.size(x.dim() - 1);                                      \
  L4K_REQUIRE(width % 8 == 0 && width >= 8 && width <= kRmsNormMaxWidth,          \
              "expected the last dimension of x to be a multiple of 8, at most ", \
              kRmsNormMaxWidth, ", got ", describe(x));                           \
  L4K_CHECK_SHAPE(weight, width);                                                 \
  L4K_CHECK_ROWS(x);                                                              \
  L4K_CHECK_ROWS(weight)

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  L4K_CHECK_NORM();
  L4K_CHECK_UNIFORM_ROWS(x);
  Device device(x);
  const Rows rows = rows_of(x);
  Tensor y = empty_like(x, std::vector<int64_t>(x.sizes().begin(), x.sizes().end()));
  RmsNormParams params{.rows = rows.count,
                       .width = static_cast<int>(width),
                       .x = pointer(x),
                       .weight = pointer(weight),
                       .y = pointer(y),
                       .x_stride = rows.stride,
                       .eps = static_cast<float>(eps),
                       .scaling = kScalingNone};
  L4K_LAUNCH(l4k::rms_norm(params, device.stream()));
  return y;
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                        const Tensor& weight, double eps) {
  L4K_CHECK_SHAPE(x, -1, -1);
  L4K_CHECK_NORM();
  L4K_CHECK_BF16_ROWS(residual, x.size(0), width);
  Device device(x);
  Tensor y = empty_like(x, {x.size(0), width});
  Tensor total = empty_like(x, {x.size(0), width});
  RmsNormParams params{.rows = x.size(0),
                       .width = static_cast<int>(width),
                       .x = pointer(x),
                       .residual = pointer(residual),
                       .weight = pointer(weight),
                       .y = pointer(y),
                       .residual_out = pointer(total),
                       .x_stride = x.stride(0),
                       .residual_stride = residual.stride(0),
                       .eps = static_cast<float>(eps),
                       .scaling = kScalingNone};
  L4K_LAUNCH(l4k::rms_norm(params, device.stream()));
  return {y, total};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rms_norm_fp8(const Tensor& x, const Tensor& weight,
                                                        double eps, const std::string& scaling,
                                                        const std::optional<Tensor>& maybe_residual,
                                                        bool keep_y) {
  L4K_CHECK_SHAPE(x, -1, -1);
  L4K_CHECK_NORM();
  const int64_t rows = x.size(0);
  L4K_CHECK_ROW_SCALING(width);
  const bool added = maybe_residual.has_value();
  L4K_CHECK_MAYBE_ROWS(residual, rows, width);
  Device device(x);
  auto [q, scale] = empty_fp8(x, kind, rows, width);
  Tensor y = empty_like(x, {keep_y ? rows : 0, width});
  Tensor total = empty_like(x, {added ? rows : 0, width});
  RmsNormParams params{.rows = rows,
                       .width = static_cast<int>(width),
                       .x = pointer(x),
                       .residual = optional_pointer(maybe_residual),
                       .weight = pointer(weight),
                       .y = keep_y ? pointer(y) : nullptr,
                       .residual_out = added ? pointer(total) : nullptr,
                       .q = pointer(q),
                       .scale = pointer<float>(scale),
                       .x_stride = x.stride(0),
                       .residual_stride = added ? maybe_residual->stride(0) : 0,
                       .eps = static_cast<float>(eps),
                       .scaling = kind};
  L4K_LAUNCH(l4k::rms_norm(params, device.stream()));
  return {q, scale, y, total};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  L4K_IMPL(m, "rms_norm", rms_norm);
  L4K_IMPL(m, "add_rms_norm", add_rms_norm);
  L4K_IMPL(m, "rms_norm_fp8", rms_norm_fp8);
}
