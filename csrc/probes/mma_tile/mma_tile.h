// d = a * b^T for one 64x64x64 tile of bf16: the shortest program through TMA and wgmma.
#pragma once
#include <cuda_runtime.h>

namespace l4k {

constexpr int kMmaTile = 64;

struct MmaTileParams {
  const void* a;  // [64, 64] bf16, contiguous, 16-byte aligned
  const void* b;  // [64, 64] bf16, contiguous, 16-byte aligned
  void* d;        // [64, 64] bf16, contiguous, 16-byte aligned
};

cudaError_t mma_tile(const MmaTileParams& params, cudaStream_t stream);

}  // namespace l4k
