// out[m, f] = silu(x[m, f]) * x[m, F + f], in bf16 or as e4m3 with scales
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/scaling.h"

namespace l4k {

struct SiluMulParams {
  int64_t rows;      // M
  int64_t width;     // F, a multiple of 8
  const void* x;     // [M, 2F] bf16, 16-byte aligned rows
  void* out;         // [M, F] bf16, contiguous
  int64_t x_stride;  // elements between rows of x, a multiple of 8
};

constexpr int kSiluMulFp8MaxWidth = 16384;

struct SiluMulFp8Params {
  int64_t rows;      // M
  int width;         // F, a multiple of 8, at most kSiluMulFp8MaxWidth
  const void* x;     // [M, 2F] bf16, 16-byte aligned rows
  void* q;           // [M, F] e4m3, contiguous
  float* scale;      // [M] or [M, F / 128]
  int64_t x_stride;  // elements between rows of x, a multiple of 8
  Scaling scaling;   // row or 1x128 (then F is a multiple of 128)
};

cudaError_t silu_mul(const SiluMulParams& params, cudaStream_t stream);
cudaError_t silu_mul_fp8(const SiluMulFp8Params& params, cudaStream_t stream);

}  // namespace l4k
