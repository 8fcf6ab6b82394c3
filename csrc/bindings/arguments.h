// Arguments that several ops take: each check returns what the kernels need to know of them.
#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "bindings/call.h"
#include "tile/base.h"
#include "tile/rope.h"
#include "tile/scaling.h"

namespace l4k {

constexpr int64_t kIntLimit = int64_t{1} << 31;  // of what a kernel holds in an int

// Rows that a kernel reads in 16-byte vectors. [..., D] counts as [rows, D].
struct Rows {
  const void* data = nullptr;  // null: an optional argument that is not there
  int64_t count = 0, width = 0;
  int64_t stride = 0;  // elements between rows
};

// Rows in 16-byte vectors, wherever each begins.
inline void* check_vectors(const Call& call, const Argument& t) {
  constexpr int64_t kVector = 16;
  void* data = call.address(t, 1);
  const int64_t last = t.rank() - 1, bytes = t.element_size();
  bool fit = t.strides[last] == 1 && reinterpret_cast<uintptr_t>(data) % kVector == 0;
  for (int64_t i = 0; i < last; ++i) fit &= t.sizes[i] <= 1 || t.strides[i] * bytes % kVector == 0;
  const bool odd = t.sizes[last] * bytes % kVector != 0;  // no copy of it would fit
  call.require(
      fit || t.empty(), "expected the rows of ", t.name,
      " to be contiguous and 16-byte aligned, got ", t,
      odd ? "; pad its rows to a multiple of 16 bytes" : "; call contiguous() or clone() first");
  return data;
}

// All dimensions but the last as one; the rows must be evenly spaced.
inline Rows check_rows(const Call& call, const Argument& t, ScalarType dtype) {
  call.require_dtype(t, {dtype});
  call.require(t.rank() >= 1, "expected ", t.name, " to be [..., D], got ", t);
  const int64_t width = t.sizes[t.rank() - 1];
  Rows rows{check_vectors(call, t), 1, width, width};
  bool even = true;
  for (int64_t i = t.rank() - 2; i >= 0; --i) {
    if (t.sizes[i] == 1) continue;  // its stride says nothing
    if (rows.count == 1) rows.stride = t.strides[i];
    even &= t.strides[i] == rows.stride * rows.count;
    rows.count *= t.sizes[i];
  }
  call.require(even || t.empty(), "expected the rows of ", t.name,
               " to be evenly spaced in memory, got ", t, "; call contiguous() first");
  return rows;
}

inline Rows check_rows(const Call& call, const Argument& t, ScalarType dtype, const Shape& shape) {
  call.require_shape(t, shape);
  return check_rows(call, t, dtype);
}

inline Rows check_optional_rows(const Call& call, const OptionalArgument& t, ScalarType dtype,
                                const Shape& shape) {
  return t ? check_rows(call, *t, dtype, shape) : Rows{};
}

// A list or table that is read element by element.
template <typename T>
constexpr ScalarType kScalarType = ScalarType::Undefined;
template <>
constexpr ScalarType kScalarType<float> = ScalarType::Float;
template <>
constexpr ScalarType kScalarType<int> = ScalarType::Int;
template <>
constexpr ScalarType kScalarType<int64_t> = ScalarType::Long;

template <typename T>
T* check_list(const Call& call, const Argument& t, const Shape& shape) {
  call.require_dtype(t, {kScalarType<T>});
  call.require_shape(t, shape);
  call.require_contiguous(t);
  return static_cast<T*>(call.address(t, sizeof(T)));
}

template <typename T>
T* check_optional_list(const Call& call, const OptionalArgument& t, const Shape& shape) {
  return t ? check_list<T>(call, *t, shape) : nullptr;
}

// A score for each token and expert, or for each sequence and token of the vocabulary.
struct Logits {
  const void* data;
  int64_t rows, width;
  int64_t stride;  // elements between rows
  bool float32;    // else bf16
};

inline Logits check_logits(const Call& call, const Argument& t) {
  call.require_dtype(t, {ScalarType::BFloat16, ScalarType::Float});
  call.require_shape(t, {"rows", "columns"});
  call.require(t.sizes[1] <= 1 || t.strides[1] == 1, "expected the last dimension of ", t.name,
               " to be contiguous, got ", t, "; call contiguous() first");
  return {call.address(t, t.element_size()), t.sizes[0], t.sizes[1], t.strides[0],
          t.dtype == ScalarType::Float};
}

// Keys and values in pages: [pages, page_size, kv_heads, head_dim] in bf16, or in e4m3 with an
// optional scale per KV head.
struct PagedCache {
  void *k, *v;
  int64_t pages, page_size, kv_heads;
  bool fp8;
  const float *k_scale, *v_scale;  // [kv_heads]; null: 1
};

inline PagedCache check_paged_cache(const Call& call, const Tensor& k_cache, const Tensor& v_cache,
                                    const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                                    int64_t head_dim) {
  const Argument k("k_cache", k_cache), v("v_cache", v_cache);
  call.require_shape(k, {"P", "page", "Hkv", head_dim});
  call.require_shape(v, {k.sizes[0], k.sizes[1], k.sizes[2], head_dim});
  call.require_dtype(k, {ScalarType::BFloat16, ScalarType::Float8_e4m3fn});
  call.require(v.dtype == k.dtype, "expected v_cache to have the dtype of k_cache, got ", v);
  const bool fp8 = k.dtype == ScalarType::Float8_e4m3fn;
  call.require(fp8 || (!k_scale && !v_scale),
               "expected no k_scale or v_scale with a BFloat16 cache, got one");
  call.require_contiguous(k);
  call.require_contiguous(v);
  return {.k = check_vectors(call, k),
          .v = check_vectors(call, v),
          .pages = k.sizes[0],
          .page_size = k.sizes[1],
          .kv_heads = k.sizes[2],
          .fp8 = fp8,
          .k_scale = check_optional_list<float>(call, {"k_scale", k_scale}, {k.sizes[2]}),
          .v_scale = check_optional_list<float>(call, {"v_scale", v_scale}, {k.sizes[2]})};
}

// What is done to heads of q and k, of the arguments under these names.
inline HeadRule check_head_rule(const Call& call, const OptionalTensor& cos_sin,
                                const std::optional<double>& qk_norm_eps, double attn_scale,
                                int64_t floor_scale) {
  call.require(floor_scale >= 1 && floor_scale < kIntLimit,
               "expected floor_scale to be positive, got ", floor_scale);
  call.require(qk_norm_eps.value_or(0.0) >= 0.0,
               "expected qk_norm_eps to be None (off) or not negative, got ",
               qk_norm_eps.value_or(0.0));
  const Rows table =
      check_optional_rows(call, {"cos_sin", cos_sin}, ScalarType::Float, {"R", kHeadDim});
  if (cos_sin.has_value()) {
    call.require_contiguous({"cos_sin", *cos_sin});
    call.require(table.count > 0 && table.count < kIntLimit,
                 "expected cos_sin to hold 1 to 2^31 - 1 positions, got ", table.count);
  }
  return {.cos_sin = static_cast<const float*>(table.data),
          .table_rows = table.count,
          .qk_norm_eps = static_cast<float>(qk_norm_eps.value_or(-1.0)),
          .attn_scale = static_cast<float>(attn_scale),
          .floor_scale = static_cast<int>(floor_scale)};
}

// kScalingNone if there is no such name.
inline Scaling scaling_named(const std::string& name) {
  if (name == "tensor") return kScalingTensor;
  if (name == "row") return kScalingRow;
  if (name == "1x128") return kScaling1x128;
  if (name == "128x128") return kScaling128x128;
  return kScalingNone;
}

// The argument `scaling` of an op with a factor for each row or each 128 elements of it.
inline Scaling check_row_scaling(const Call& call, const std::string& scaling, int64_t width) {
  const Scaling kind = scaling_named(scaling);
  call.require(kind == kScalingRow || kind == kScaling1x128,
               "expected scaling to be one of row, 1x128, got '", scaling, "'");
  call.require(kind == kScalingRow || width % kScaleBlock == 0, "expected rows of a multiple of ",
               kScaleBlock, " elements with scaling 1x128, got ", width);
  return kind;
}

// Codes [rows, width] and their scales.
inline std::tuple<Tensor, Tensor> empty_fp8(const Call& call, Scaling kind, int64_t rows,
                                            int64_t width) {
  return {call.empty({rows, width}, ScalarType::Float8_e4m3fn),
          kind == kScaling1x128 ? call.empty({rows, width / kScaleBlock}, ScalarType::Float)
                                : call.empty({rows}, ScalarType::Float)};
}

}  // namespace l4k
