// What several bindings ask of their arguments.
#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "bindings/check.h"
#include "tile/base.h"
#include "tile/scaling.h"

namespace l4k {

// kScalingNone if there is no such name.
inline Scaling scaling_named(const std::string& name) {
  if (name == "tensor") return kScalingTensor;
  if (name == "row") return kScalingRow;
  if (name == "1x128") return kScaling1x128;
  if (name == "128x128") return kScaling128x128;
  return kScalingNone;
}

// [..., D] seen as [rows, D].
struct Rows {
  int64_t count;   // product of all sizes but the last
  int64_t stride;  // elements between rows; -1 if it differs from row to row
};

inline Rows rows_of(const Tensor& t) {
  Rows rows{1, t.size(t.dim() - 1)};
  bool first = true;
  for (int64_t i = t.dim() - 2; i >= 0; --i) {
    if (t.size(i) != 1) {
      if (first) rows.stride = t.stride(i);
      else if (t.stride(i) != rows.stride * rows.count) rows.stride = -1;
      first = false;
    }
    rows.count *= t.size(i);
    if (rows.stride == -1) break;
  }
  if (rows.stride == -1) {
    rows.count = 1;
    for (int64_t i = 0; i + 1 < t.dim(); ++i) rows.count *= t.size(i);
  }
  return rows;
}

// Whether the bytes from the first to the last of one tensor reach into those of the other.
inline bool share_memory(const Tensor& a, const Tensor& b) {
  const auto extent = [](const Tensor& t) {
    int64_t elements = t.numel() > 0;
    for (int64_t i = 0; elements > 0 && i < t.dim(); ++i) elements += (t.size(i) - 1) * t.stride(i);
    const char* first = elements > 0 ? static_cast<const char*>(pointer(t)) : nullptr;
    return std::pair{first, first + elements * t.element_size()};
  };
  const auto [a_first, a_end] = extent(a);
  const auto [b_first, b_end] = extent(b);
  return a_first < b_end && b_first < a_end;
}

template <typename T = void>
T* optional_pointer(const std::optional<Tensor>& t) {
  return t.has_value() ? pointer<T>(*t) : nullptr;
}

template <typename T = void>
T* optional_pointer(const std::optional<Tensor>&&) = delete;

// Memory that only the kernels of this call see. The binding holds it in a variable until they are
// launched; freed after that, it is theirs until they end, as the stream has it.
[[nodiscard]] inline Tensor workspace(const Tensor& like, int64_t words) {
  return empty_like(like, {words}, ScalarType::Int, "a workspace");
}

#define L4K_CHECK_UNIFORM_ROWS(t)                                                                  \
  L4K_REQUIRE(l4k::rows_of(t).stride >= 0 || (t).numel() == 0,                                     \
              "expected the rows of " #t " to be evenly spaced in memory, got ", l4k::describe(t), \
              "; call contiguous() first")

// Rows of bf16 that a kernel reads in 16-byte vectors; of an argument maybe_<name>, if it is there.
#define L4K_CHECK_BF16_ROWS(t, ...) \
  L4K_CHECK_DTYPE(t, BFloat16);     \
  L4K_CHECK_SHAPE(t, __VA_ARGS__);  \
  L4K_CHECK_ROWS(t)
#define L4K_CHECK_MAYBE_ROWS(name, rows, width) \
  if (maybe_##name.has_value()) {               \
    const Tensor& name = *maybe_##name;         \
    L4K_CHECK_BF16_ROWS(name, rows, width);     \
  }

// One factor for a row or for 128 elements of it: the argument `scaling`, and what is returned.
#define L4K_CHECK_ROW_SCALING(width)                                            \
  const Scaling kind = scaling_named(scaling);                                  \
  L4K_REQUIRE(kind == kScalingRow || kind == kScaling1x128,                     \
              "expected scaling to be one of row, 1x128, got '", scaling, "'"); \
  if (kind == kScaling1x128) L4K_CHECK_MULTIPLE(width, kScaleBlock)
inline std::tuple<Tensor, Tensor> empty_fp8(const Tensor& like, Scaling kind, int64_t rows,
                                            int64_t width) {
  std::vector<int64_t> scales{rows};
  if (kind == kScaling1x128) scales.push_back(width / kScaleBlock);
  return {empty_like(like, {rows, width}, ScalarType::Float8_e4m3fn),
          empty_like(like, scales, ScalarType::Float)};
}

// A list or table that is read element by element.
#define L4K_CHECK_TABLE(t, dtype, ...) \
  L4K_CHECK_DTYPE(t, dtype);           \
  L4K_CHECK_SHAPE(t, __VA_ARGS__);     \
  L4K_CHECK_CONTIGUOUS(t)

#define L4K_CHECK_HEAD_SCALE(name, heads) \
  if (maybe_##name.has_value()) {         \
    const Tensor& name = *maybe_##name;   \
    L4K_CHECK_TABLE(name, Float, heads);  \
  }

// The arguments k_cache, v_cache, maybe_k_scale and maybe_v_scale of every op with a paged cache:
// [P, page_size, Hkv, head_dim] in bf16, or e4m3 with an optional scale per KV head.
#define L4K_CHECK_PAGED_CACHE(head_dim)                                                       \
  L4K_CHECK_SHAPE(k_cache, -1, -1, -1, head_dim);                                             \
  L4K_CHECK_SHAPE(v_cache, k_cache.size(0), k_cache.size(1), k_cache.size(2), head_dim);      \
  if (k_cache.scalar_type() != ScalarType::Float8_e4m3fn) {                                   \
    L4K_CHECK_DTYPE(k_cache, BFloat16);                                                       \
    L4K_REQUIRE(!maybe_k_scale.has_value() && !maybe_v_scale.has_value(),                     \
                "expected no k_scale or v_scale with a BFloat16 cache, got one");             \
  }                                                                                           \
  L4K_REQUIRE(v_cache.scalar_type() == k_cache.scalar_type(),                                 \
              "expected v_cache to have the dtype of k_cache, got ", l4k::describe(v_cache)); \
  L4K_CHECK_CONTIGUOUS(k_cache);                                                              \
  L4K_CHECK_CONTIGUOUS(v_cache);                                                              \
  L4K_CHECK_ROWS(k_cache);                                                                    \
  L4K_CHECK_ROWS(v_cache);                                                                    \
  L4K_CHECK_HEAD_SCALE(k_scale, k_cache.size(2))                                              \
  L4K_CHECK_HEAD_SCALE(v_scale, k_cache.size(2))

}  // namespace l4k
