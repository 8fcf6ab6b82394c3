// out[t] = sum over j of y[inverse[t * top_k + j]] + shared[t] + residual[t], and its RMSNorm
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/norm.h"

namespace l4k {

struct MoeCombineParams {
  int64_t tokens;        // T
  int64_t width;         // D, a multiple of 8
  int top_k;             // rows of a token, a shared expert's among them
  const void* y;         // [T * top_k, D] bf16, permuted rows, 16-byte aligned
  const int* inverse;    // [T * top_k]
  const void* shared;    // [T, D] bf16 or null
  const void* residual;  // [T, D] bf16 or null
  void* out;             // [T, D] bf16 contiguous
  int64_t y_stride;      // elements between rows, multiples of 8
  int64_t shared_stride;
  int64_t residual_stride;
  uint32_t* error;  // tile/report.cuh
};

struct MoeCombineNormParams {
  MoeCombineParams combine;  // D at most kNormMaxWidth, no `shared`
  const void* weight;        // [D] bf16
  float eps;
  void* normed;  // [T, D] bf16 contiguous, null for
  void* q;       // [T, D] e4m3 contiguous and
  float* scale;  // [T]
};

// Registers per thread of the latter: three CTAs of a 5,120-wide row fit an SM.
constexpr int kMoeCombineNormRegisters = 64;

cudaError_t moe_combine(const MoeCombineParams& params, cudaStream_t stream);
cudaError_t moe_combine_norm(const MoeCombineNormParams& params, cudaStream_t stream);

}  // namespace l4k
