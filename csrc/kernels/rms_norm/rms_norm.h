// y = round((x + residual) * rsqrt(mean((x + residual)^2) + eps)) * weight, and e4m3 of y
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/norm.h"
#include "tile/scaling.h"

namespace l4k {

// Per thread: four CTAs of a 5,120-wide row fit an SM.
constexpr int kRmsNormRegisters = 48;

struct RmsNormParams {
  int64_t rows;          // T
  int width;             // D, a multiple of 8, at most kNormMaxWidth
  const void* x;         // [T, D] bf16, 16-byte aligned rows
  const void* residual;  // [T, D] bf16, 16-byte aligned rows, or null
  const void* weight;    // [D] bf16
  void* y;               // [T, D] bf16 contiguous; may be null if scaling is not none
  void* residual_out;    // [T, D] bf16 contiguous, null without residual: x + residual
  void* q;               // [T, D] e4m3 contiguous, null if scaling is none
  float* scale;          // [T] or [T, D / 128]
  int64_t x_stride;      // elements between rows, multiples of 8
  int64_t residual_stride;
  float eps;
  Scaling scaling;  // none, row or 1x128 (then D is a multiple of 128)
};

cudaError_t rms_norm(const RmsNormParams& params, cudaStream_t stream);

}  // namespace l4k
