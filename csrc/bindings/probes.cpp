#include "bindings/check.h"
#include "probes/mma_tile/mma_tile.h"
#include "probes/word_sum/word_sum.h"

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

Tensor word_sum(const Tensor& data) {
  L4K_CHECK_CONTIGUOUS(data);
  const int64_t bytes = data.numel() * data.element_size();
  L4K_CHECK_MULTIPLE(bytes, 16);
  L4K_REQUIRE(reinterpret_cast<uintptr_t>(data.data_ptr()) % 16 == 0,
              "expected data to be 16-byte aligned; clone() it first");
  Device device(data);
  Tensor out = empty_like(data, {1}, ScalarType::Int);
  L4K_LAUNCH(l4k::word_sum(
      {.num_vectors = bytes / 16, .data = pointer(data), .out = pointer<uint32_t>(out)},
      device.stream()));
  return out;
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  L4K_IMPL(m, "mma_tile", mma_tile);
  L4K_IMPL(m, "word_sum", word_sum);
}
