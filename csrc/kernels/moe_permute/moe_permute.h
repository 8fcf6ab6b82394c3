// out[i] = x[permutation[i] / top_k]
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

struct MoePermuteParams {
  int64_t rows;            // T * top_k
  int64_t row_vectors;     // 16-byte vectors in a row
  int top_k;               // rows of a token, a shared expert's among them
  const void* x;           // [T, D], 16-byte aligned rows
  const int* permutation;  // [T * top_k]
  void* out;               // [T * top_k, D] contiguous
  int64_t x_stride;        // 16-byte vectors between rows of x
  uint32_t* error;         // tile/report.cuh
};

cudaError_t moe_permute(const MoePermuteParams& params, cudaStream_t stream);

}  // namespace l4k
