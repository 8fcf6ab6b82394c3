#include "kernels/word_sum/word_sum.h"

#include "bindings/check.h"

namespace l4k::binding {

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

L4K_REGISTER(m) { L4K_IMPL(m, "word_sum", word_sum); }
