// Factors of a product that its sums are multiplied with in the end.
#pragma once
#include "tile/epilogue.h"
#include "tile/scaling.h"

namespace l4k {

// The scales of a row of A that do not depend on K, and those of the whole matrices.
__device__ __forceinline__ float row_factor(const Epilogue& epilogue, const GemmScales& scales,
                                            int row, int expert) {
  float factor = epilogue.row_scale != nullptr ? epilogue.row_scale[row] : 1.f;
  if (scales.kind_a == GemmScale::kTensor) factor *= scales.a[0];
  if (scales.kind_a == GemmScale::kRow) factor *= scales.a[row];
  if (scales.kind_b == GemmScale::kTensor) factor *= scales.b[expert];
  return factor;
}

// Whether row_factor() can be other than 1.
__device__ __forceinline__ bool has_row_factor(const Epilogue& epilogue, const GemmScales& scales) {
  return epilogue.row_scale != nullptr || scales.kind_a == GemmScale::kTensor ||
         scales.kind_a == GemmScale::kRow || scales.kind_b == GemmScale::kTensor;
}

// The scales of B's output channels, `n` of every expert; null if they are not scaled each.
__device__ __forceinline__ const float* channel_factors(const GemmScales& scales, int expert,
                                                        int n) {
  return scales.kind_b == GemmScale::kRow ? scales.b + int64_t{expert} * n : nullptr;
}

}  // namespace l4k
