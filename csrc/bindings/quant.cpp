#include <tuple>

#include "bindings/arguments.h"
#include "kernels/quantize_fp8/quantize_fp8.h"

namespace l4k::binding {

std::tuple<Tensor, Tensor> quantize_fp8(const Tensor& x, const std::string& scaling) {
  L4K_CHECK_DTYPE(x, BFloat16);
  const Scaling kind = scaling_named(scaling);
  L4K_REQUIRE(kind != kScalingNone,
              "expected scaling to be one of tensor, row, 1x128, 128x128, got '", scaling, "'");
  const int64_t dims = x.dim(), least = kind == kScaling128x128 ? 2 : 1;
  L4K_REQUIRE(dims >= least, "expected x to have at least ", least, " dimensions, got ",
              describe(x));
  const int64_t width = x.size(dims - 1);
  const bool blocks = kind == kScaling1x128 || kind == kScaling128x128;
  L4K_CHECK_MULTIPLE(width, (blocks ? kScaleBlock : 8));
  L4K_CHECK_ROWS(x);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < dims; ++i) shape.push_back(x.size(i));

  Device device(x);
  Tensor q = empty_like(x, shape, ScalarType::Float8_e4m3fn);
  if (kind == kScalingRow || kind == kScaling1x128) {
    L4K_REQUIRE(width >= 8 && width <= kQuantizeMaxRow,
                "expected the last dimension of x to be at most ", kQuantizeMaxRow, ", got ",
                describe(x));
    L4K_CHECK_UNIFORM_ROWS(x);
    const Rows rows = rows_of(x);
    shape.pop_back();
    if (kind == kScaling1x128) shape.push_back(width / kScaleBlock);
    Tensor scale = empty_like(x, shape, ScalarType::Float);
    QuantizeRowsParams params{.rows = rows.count,
                              .x_rows = rows.count,
                              .width = static_cast<int>(width),
                              .top_k = 1,
                              .x = pointer(x),
                              .q = pointer(q),
                              .scale = pointer<float>(scale),
                              .x_stride = rows.stride,
                              .scaling = kind};
    L4K_LAUNCH(l4k::quantize_rows(params, device.stream()));
    return {q, scale};
  }
  L4K_CHECK_CONTIGUOUS(x);
  if (kind == kScaling128x128) {
    const int64_t rows = x.size(dims - 2);
    shape[dims - 2] = ceil_div<int64_t>(rows, kScaleBlock);
    shape[dims - 1] = width / kScaleBlock;
    Tensor scale = empty_like(x, shape, ScalarType::Float);
    const int64_t matrices = x.numel() == 0 ? 0 : x.numel() / (rows * width);
    QuantizeBlocksParams params{.matrices = matrices,
                                .rows = rows,
                                .width = width,
                                .x = pointer(x),
                                .q = pointer(q),
                                .scale = pointer<float>(scale)};
    L4K_LAUNCH(l4k::quantize_blocks(params, device.stream()));
    return {q, scale};
  }
  const int64_t matrices = dims > 2 ? x.size(0) : 1;
  L4K_REQUIRE(matrices < 65536, "expected fewer than 65,536 matrices, got ", describe(x));
  const int64_t elements = matrices == 0 ? 0 : x.numel() / matrices;
  Tensor scale = dims > 2 ? empty_like(x, {matrices, 1}, ScalarType::Float)
                          : empty_like(x, {1}, ScalarType::Float);
  Tensor maxima = workspace(x, quantize_tensor_workspace(matrices, elements));
  QuantizeTensorParams params{.matrices = matrices,
                              .elements = elements,
                              .x = pointer(x),
                              .q = pointer(q),
                              .scale = pointer<float>(scale),
                              .maxima = pointer<uint32_t>(maxima)};
  L4K_LAUNCH(l4k::quantize_tensor(params, device.stream()));
  return {q, scale};
}

}  // namespace l4k::binding

L4K_REGISTER(m) { L4K_IMPL(m, "quantize_fp8", quantize_fp8); }
