// The arguments of a product that say what follows it.
#pragma once
#include <string>

#include "bindings/arguments.h"
#include "tile/epilogue.h"

namespace l4k {

struct EpilogueArguments {
  const OptionalTensor &bias, &residual, &row_scale;
  const std::string& activation;
  const std::optional<ScalarType>& out_dtype;
};

inline Activation check_activation(const Call& call, const std::string& activation, int64_t n) {
  Activation result{};
  if (activation == "gelu") result = Activation::kGelu;
  else if (activation == "swiglu") result = Activation::kSwiglu;
  else if (activation != "none")
    call.fail("expected activation to be none, gelu or swiglu, got ", activation);
  call.require(n % (result == Activation::kSwiglu ? 16 : 8) == 0,
               "expected N (rows of b) to be a multiple of 8 (16 for swiglu), got ", n);
  return result;
}

// Columns of the result of N of the product.
inline int64_t result_columns(const Epilogue& epilogue, int64_t n) {
  return epilogue.activation == Activation::kSwiglu ? n / 2 : n;
}

inline ScalarType result_dtype(const Epilogue& epilogue) {
  return epilogue.out_float32 ? ScalarType::Float : ScalarType::BFloat16;
}

// All but the result, of M rows and N columns of the product.
inline Epilogue check_epilogue(const Call& call, const EpilogueArguments& a, int64_t m, int64_t n) {
  Epilogue e{};
  e.activation = check_activation(call, a.activation, n);
  e.bias = check_optional_rows(call, {"bias", a.bias}, ScalarType::BFloat16, {n}).data;
  const Rows rows = check_optional_rows(call, {"residual", a.residual}, ScalarType::BFloat16,
                                        {m, result_columns(e, n)});
  e.residual = rows.data;
  e.residual_stride = rows.stride;
  e.row_scale = check_optional_list<float>(call, {"row_scale", a.row_scale}, {m});
  const ScalarType dtype = a.out_dtype.value_or(ScalarType::BFloat16);
  call.require(dtype == ScalarType::BFloat16 || dtype == ScalarType::Float,
               "expected out_dtype to be BFloat16 or Float, got ",
               torch::headeronly::toString(dtype));
  e.out_float32 = dtype == ScalarType::Float;
  return e;
}

// A result that the caller gives. A tile of it is written while others still read the inputs; of the
// residual each tile reads just what it writes, so it may be that itself.
inline void* check_out(const Call& call, const Argument& out, const Epilogue& epilogue, int64_t m,
                       int64_t n, std::initializer_list<const Tensor*> inputs,
                       std::initializer_list<const OptionalTensor*> optional_inputs,
                       const OptionalTensor& residual) {
  call.require(out.dtype == result_dtype(epilogue),
               "expected out in the dtype that out_dtype asks for, got ", out);
  call.require_shape(out, {m, result_columns(epilogue, n)});
  call.require_contiguous(out);
  void* data = check_vectors(call, out);
  const auto require_apart = [&](const Tensor& input) {
    call.require(!Extent(out).overlaps(Extent({"", input})),
                 "expected out to share no memory with an input, except to be residual itself, ",
                 "got an out in the memory of ", input);
  };
  for (const Tensor* t : inputs) require_apart(*t);
  for (const OptionalTensor* t : optional_inputs)
    if (*t) require_apart(**t);
  // The stride of a single row says nothing.
  const bool same_rows = m == 1 || epilogue.residual_stride == out.strides[0];
  if (residual && !(epilogue.residual == data && same_rows)) require_apart(*residual);
  return data;
}

}  // namespace l4k
