#include "kernels/mma_tile/mma_tile.h"

#include "bindings/check.h"

namespace l4k::binding {

Tensor mma_tile(const Tensor& a, const Tensor& b) {
  L4K_CHECK_DTYPE(a, BFloat16);
  L4K_CHECK_DTYPE(b, BFloat16);
  L4K_CHECK_SHAPE(a, kMmaTile, kMmaTile);
  L4K_CHECK_SHAPE(b, kMmaTile, kMmaTile);
  L4K_CHECK_CONTIGUOUS(a);
  L4K_CHECK_CONTIGUOUS(b);
  L4K_CHECK_ROWS(a);
  L4K_CHECK_ROWS(b);
  Device device(a);
  Tensor d = empty_like(a, {kMmaTile, kMmaTile});
  L4K_LAUNCH(l4k::mma_tile({pointer(a), pointer(b), pointer(d)}, device.stream()));
  return d;
}

}  // namespace l4k::binding

L4K_REGISTER(m) { L4K_IMPL(m, "mma_tile", mma_tile); }
