#include <tuple>

#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/rms_norm/rms_norm.h"

namespace l4k::binding {

namespace {

void check_width(const Call& call, const Tensor& x, const Rows& rows) {
  call.require(rows.width % 8 == 0 && rows.width >= 8 && rows.width <= kNormMaxWidth,
               "expected the last dimension of x to be a multiple of 8, at most ", kNormMaxWidth,
               ", got ", x);
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const Call call("rms_norm", {"x", x});
  const Rows in = check_rows(call, {"x", x}, ScalarType::BFloat16);
  check_width(call, x, in);
  const Rows weight_rows = check_rows(call, {"weight", weight}, ScalarType::BFloat16, {in.width});
  Tensor y = call.empty(x.sizes(), ScalarType::BFloat16);
  const RmsNormParams params{.rows = in.count,
                             .width = static_cast<int>(in.width),
                             .x = in.data,
                             .weight = weight_rows.data,
                             .y = pointer(y),
                             .x_stride = in.stride,
                             .eps = static_cast<float>(eps),
                             .scaling = kScalingNone};
  call.launch(l4k::rms_norm, params);
  return y;
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                        const Tensor& weight, double eps) {
  const Call call("add_rms_norm", {"x", x});
  const Rows in = check_rows(call, {"x", x}, ScalarType::BFloat16, {"T", "D"});
  check_width(call, x, in);
  const Rows weight_rows = check_rows(call, {"weight", weight}, ScalarType::BFloat16, {in.width});
  const Rows residual_rows =
      check_rows(call, {"residual", residual}, ScalarType::BFloat16, {in.count, in.width});
  Tensor y = call.empty({in.count, in.width}, ScalarType::BFloat16);
  Tensor total = call.empty({in.count, in.width}, ScalarType::BFloat16);
  const RmsNormParams params{.rows = in.count,
                             .width = static_cast<int>(in.width),
                             .x = in.data,
                             .residual = residual_rows.data,
                             .weight = weight_rows.data,
                             .y = pointer(y),
                             .residual_out = pointer(total),
                             .x_stride = in.stride,
                             .residual_stride = residual_rows.stride,
                             .eps = static_cast<float>(eps),
                             .scaling = kScalingNone};
  call.launch(l4k::rms_norm, params);
  return {y, total};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rms_norm_fp8(const Tensor& x, const Tensor& weight,
                                                        double eps, const std::string& scaling,
                                                        const OptionalTensor& residual,
                                                        bool keep_y) {
  const Call call("rms_norm_fp8", {"x", x});
  const Rows in = check_rows(call, {"x", x}, ScalarType::BFloat16, {"T", "D"});
  check_width(call, x, in);
  const Rows weight_rows = check_rows(call, {"weight", weight}, ScalarType::BFloat16, {in.width});
  const Scaling kind = check_row_scaling(call, scaling, in.width);
  const Rows residual_rows =
      check_optional_rows(call, {"residual", residual}, ScalarType::BFloat16, {in.count, in.width});
  const bool adds = residual.has_value();
  auto [q, scale] = empty_fp8(call, kind, in.count, in.width);
  Tensor y = call.empty({keep_y ? in.count : 0, in.width}, ScalarType::BFloat16);
  Tensor total = call.empty({adds ? in.count : 0, in.width}, ScalarType::BFloat16);
  const RmsNormParams params{.rows = in.count,
                             .width = static_cast<int>(in.width),
                             .x = in.data,
                             .residual = residual_rows.data,
                             .weight = weight_rows.data,
                             .y = keep_y ? pointer(y) : nullptr,
                             .residual_out = adds ? pointer(total) : nullptr,
                             .q = pointer(q),
                             .scale = pointer<float>(scale),
                             .x_stride = in.stride,
                             .residual_stride = residual_rows.stride,
                             .eps = static_cast<float>(eps),
                             .scaling = kind};
  call.launch(l4k::rms_norm, params);
  return {q, scale, y, total};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::rms_norm>(m, "rms_norm");
  l4k::bind<l4k::binding::add_rms_norm>(m, "add_rms_norm");
  l4k::bind<l4k::binding::rms_norm_fp8>(m, "rms_norm_fp8");
}
