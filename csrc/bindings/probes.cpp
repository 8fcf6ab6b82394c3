#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "probes/mma_tile/mma_tile.h"
#include "probes/word_sum/word_sum.h"

namespace l4k::binding {

namespace {

const void* check_tile(const Call& call, const Argument& t) {
  const Rows rows = check_rows(call, t, ScalarType::BFloat16, {kMmaTile, kMmaTile});
  call.require_contiguous(t);
  return rows.data;
}

}  // namespace

Tensor mma_tile(const Tensor& a, const Tensor& b) {
  const Call call("mma_tile", {"a", a});
  const void* a_data = check_tile(call, {"a", a});
  const void* b_data = check_tile(call, {"b", b});
  Tensor d = call.empty({kMmaTile, kMmaTile}, ScalarType::BFloat16);
  const MmaTileParams params{.a = a_data, .b = b_data, .d = pointer(d)};
  call.launch(l4k::mma_tile, params);
  return d;
}

Tensor word_sum(const Tensor& data) {
  const Call call("word_sum", {"data", data});
  const int64_t bytes = data.numel() * static_cast<int64_t>(data.element_size());
  call.require_contiguous({"data", data});
  call.require(bytes % 16 == 0, "expected the bytes of data to be a multiple of 16, got ", bytes);
  const void* words = call.address({"data", data}, 16);
  Tensor out = call.empty({1}, ScalarType::Int);
  const WordSumParams params{
      .num_vectors = bytes / 16, .data = words, .out = pointer<uint32_t>(out)};
  call.launch(l4k::word_sum, params);
  return out;
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::mma_tile>(m, "mma_tile");
  l4k::bind<l4k::binding::word_sum>(m, "word_sum");
}
