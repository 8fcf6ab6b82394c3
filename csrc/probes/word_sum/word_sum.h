// out = sum of all 32-bit words of a buffer, modulo 2^32
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

struct WordSumParams {
  int64_t num_vectors;  // 16-byte vectors
  const void* data;     // 16-byte aligned
  uint32_t* out;        // [1]
};

cudaError_t word_sum(const WordSumParams& params, cudaStream_t stream);

}  // namespace l4k
