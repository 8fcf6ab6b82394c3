#include <tuple>

#include "bindings/arguments.h"
#include "kernels/silu_mul/silu_mul.h"

namespace l4k::binding {

Tensor silu_mul(const Tensor& x) {
  L4K_CHECK_DTYPE(x, BFloat16);
  L4K_CHECK_SHAPE(x, -1, -1);
  const int64_t rows = x.size(0), width = x.size(1) / 2;
  L4K_REQUIRE(x.size(1) % 16 == 0, "expected the last dimension of x to be a multiple of 16, got ",
              x.size(1));
  L4K_CHECK_ROWS(x);
  Device device(x);
  Tensor out = empty_like(x, {rows, width});
  SiluMulParams params{
      .rows = rows, .width = width, .x = pointer(x), .out = pointer(out), .x_stride = x.stride(0)};
  L4K_LAUNCH(l4k::silu_mul(params, device.stream()));
  return out;
}

std::tuple<Tensor, Tensor> silu_mul_fp8(const Tensor& x, const std::string& scaling) {
  L4K_CHECK_DTYPE(x, BFloat16);
  L4K_CHECK_SHAPE(x, -1, -1);
  const int64_t rows = x.size(0), width = x.size(1) / 2;
  L4K_REQUIRE(x.size(1) % 16 == 0 && width >= 8 && width <= kSiluMulFp8MaxWidth,
              "expected the last dimension of x to be a multiple of 16, at most ",
              2 * kSiluMulFp8MaxWidth, ", got ", describe(x));
  L4K_CHECK_ROWS(x);
  L4K_CHECK_ROW_SCALING(width);
  Device device(x);
  auto [q, scale] = empty_fp8(x, kind, rows, width);
  SiluMulFp8Params params{.rows = rows,
                          .width = static_cast<int>(width),
                          .x = pointer(x),
                          .q = pointer(q),
                          .scale = pointer<float>(scale),
                          .x_stride = x.stride(0),
                          .scaling = kind};
  L4K_LAUNCH(l4k::silu_mul_fp8(params, device.stream()));
  return {q, scale};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  L4K_IMPL(m, "silu_mul", silu_mul);
  L4K_IMPL(m, "silu_mul_fp8", silu_mul_fp8);
}
