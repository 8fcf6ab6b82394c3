// out[m, f] = silu(x[m, f]) * x[m, F + f]
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

struct SiluMulParams {
  int64_t rows;      // M
  int64_t width;     // F, a multiple of 8
  const void* x;     // [M, 2F] bf16, 16-byte aligned rows
  void* out;         // [M, F] bf16, contiguous
  int64_t x_stride;  // elements between rows of x, a multiple of 8
};

cudaError_t silu_mul(const SiluMulParams& params, cudaStream_t stream);

}  // namespace l4k
