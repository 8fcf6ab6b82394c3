#include "bindings/check.h"
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
  SiluMulParams params{.rows = rows,
                       .width = width,
                       .x = pointer(x),
                       .out = pointer(out),
                       .x_stride = x.stride(0)};
  L4K_LAUNCH(l4k::silu_mul(params, device.stream()));
  return out;
}

}  // namespace l4k::binding

L4K_REGISTER(m) { m.impl("silu_mul", TORCH_BOX(&l4k::binding::silu_mul)); }
