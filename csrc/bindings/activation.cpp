#include <tuple>

#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/silu_mul/silu_mul.h"

namespace l4k::binding {

namespace {

Rows check_gate_and_up(const Call& call, const Argument& x) {
  const Rows rows = check_rows(call, x, ScalarType::BFloat16, {"M", "2F"});
  call.require(rows.width % 16 == 0,
               "expected the last dimension of x to be a multiple of 16, got ", rows.width);
  return rows;
}

}  // namespace

Tensor silu_mul(const Tensor& x) {
  const Call call("silu_mul", {"x", x});
  const Rows in = check_gate_and_up(call, {"x", x});
  Tensor out = call.empty({in.count, in.width / 2}, ScalarType::BFloat16);
  const SiluMulParams params{.rows = in.count,
                             .width = in.width / 2,
                             .x = in.data,
                             .out = pointer(out),
                             .x_stride = in.stride};
  call.launch(l4k::silu_mul, params);
  return out;
}

std::tuple<Tensor, Tensor> silu_mul_fp8(const Tensor& x, const std::string& scaling) {
  const Call call("silu_mul_fp8", {"x", x});
  const Rows in = check_gate_and_up(call, {"x", x});
  const int64_t width = in.width / 2;
  call.require(width >= 8 && width <= kSiluMulFp8MaxWidth,
               "expected the last dimension of x to be a multiple of 16, at most ",
               2 * kSiluMulFp8MaxWidth, ", got ", x);
  const Scaling kind = check_row_scaling(call, scaling, width);
  auto [q, scale] = empty_fp8(call, kind, in.count, width);
  const SiluMulFp8Params params{.rows = in.count,
                                .width = static_cast<int>(width),
                                .x = in.data,
                                .q = pointer(q),
                                .scale = pointer<float>(scale),
                                .x_stride = in.stride,
                                .scaling = kind};
  call.launch(l4k::silu_mul_fp8, params);
  return {q, scale};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::silu_mul>(m, "silu_mul");
  l4k::bind<l4k::binding::silu_mul_fp8>(m, "silu_mul_fp8");
}
