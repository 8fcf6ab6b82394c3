#include <tuple>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/quantize_fp8/quantize_fp8.h"

namespace l4k::binding {

namespace {

using Codes = std::tuple<Tensor, Tensor>;  // and their scales

// A scale per row or per 128 elements of a row.
Codes quantize_rows(const Call& call, const Argument& x, Scaling kind) {
  const Rows in = check_rows(call, x, ScalarType::BFloat16);
  call.require(in.width >= 8 && in.width <= kQuantizeMaxRow,
               "expected the last dimension of x to be at most ", kQuantizeMaxRow, ", got ", x);
  std::vector<int64_t> shape(x.sizes.begin(), x.sizes.end() - 1);
  if (kind == kScaling1x128) shape.push_back(in.width / kScaleBlock);
  Tensor q = call.empty(x.sizes, ScalarType::Float8_e4m3fn);
  Tensor scale = call.empty(shape, ScalarType::Float);
  const QuantizeRowsParams params{.rows = in.count,
                                  .x_rows = in.count,
                                  .width = static_cast<int>(in.width),
                                  .top_k = 1,
                                  .x = in.data,
                                  .q = pointer(q),
                                  .scale = pointer<float>(scale),
                                  .x_stride = in.stride,
                                  .scaling = kind};
  call.launch(l4k::quantize_rows, params);
  return {q, scale};
}

// A scale per 128x128 block of each matrix.
Codes quantize_blocks(const Call& call, const Argument& x) {
  const Rows in = check_rows(call, x, ScalarType::BFloat16);
  call.require_contiguous(x);
  const int64_t rows = x.sizes[x.rank() - 2];
  std::vector<int64_t> shape(x.sizes.begin(), x.sizes.end() - 2);
  shape.push_back(ceil_div<int64_t>(rows, kScaleBlock));
  shape.push_back(in.width / kScaleBlock);
  Tensor q = call.empty(x.sizes, ScalarType::Float8_e4m3fn);
  Tensor scale = call.empty(shape, ScalarType::Float);
  const QuantizeBlocksParams params{.matrices = x.empty() ? 0 : in.count / rows,
                                    .rows = rows,
                                    .width = in.width,
                                    .x = in.data,
                                    .q = pointer(q),
                                    .scale = pointer<float>(scale)};
  call.launch(l4k::quantize_blocks, params);
  return {q, scale};
}

// A scale per matrix.
Codes quantize_tensor(const Call& call, const Argument& x) {
  const Rows in = check_rows(call, x, ScalarType::BFloat16);
  call.require_contiguous(x);
  const int64_t matrices = x.rank() > 2 ? x.sizes[0] : 1;
  call.require(matrices < 65536, "expected fewer than 65,536 matrices, got ", x);
  const int64_t elements = matrices == 0 ? 0 : in.count * in.width / matrices;
  Tensor q = call.empty(x.sizes, ScalarType::Float8_e4m3fn);
  Tensor scale = x.rank() > 2 ? call.empty({matrices, 1}, ScalarType::Float)
                              : call.empty({1}, ScalarType::Float);
  Tensor maxima = call.workspace(quantize_tensor_workspace(matrices, elements));
  const QuantizeTensorParams params{.matrices = matrices,
                                    .elements = elements,
                                    .x = in.data,
                                    .q = pointer(q),
                                    .scale = pointer<float>(scale),
                                    .maxima = pointer<uint32_t>(maxima)};
  call.launch(l4k::quantize_tensor, params);
  return {q, scale};
}

}  // namespace

Codes quantize_fp8(const Tensor& x, const std::string& scaling) {
  const Call call("quantize_fp8", {"x", x});
  const Argument argument("x", x);
  const Scaling kind = scaling_named(scaling);
  call.require(kind != kScalingNone,
               "expected scaling to be one of tensor, row, 1x128, 128x128, got '", scaling, "'");
  const int64_t least = kind == kScaling128x128 ? 2 : 1;
  call.require(argument.rank() >= least, "expected x to have at least ", least, " dimensions, got ",
               x);
  const int64_t width = argument.sizes[argument.rank() - 1];
  const bool blocks = kind == kScaling1x128 || kind == kScaling128x128;
  const int64_t unit = blocks ? kScaleBlock : 8;
  call.require(width % unit == 0, "expected the last dimension of x to be a multiple of ", unit,
               ", got ", x);
  if (kind == kScaling128x128) return quantize_blocks(call, argument);
  if (kind == kScalingTensor) return quantize_tensor(call, argument);
  return quantize_rows(call, argument, kind);
}

}  // namespace l4k::binding

L4K_REGISTER(m) { l4k::bind<l4k::binding::quantize_fp8>(m, "quantize_fp8"); }
