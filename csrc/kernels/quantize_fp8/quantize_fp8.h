// q = saturate(x / scale), scale = amax / 448 of what shares it
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/scaling.h"

namespace l4k {

constexpr int kQuantizeMaxRow = 16384;

// One scale per row or per 128 elements of a row; rows may be gathered.
struct QuantizeRowsParams {
  int64_t rows;    // of q
  int64_t x_rows;  // of x
  int width;       // K, a multiple of 8, at most kQuantizeMaxRow
  int top_k;
  const void* x;           // [x_rows, K] bf16, 16-byte aligned rows
  const int* permutation;  // [rows] or null: row i of q is row permutation[i] / top_k of x
  void* q;                 // [rows, K] e4m3 contiguous
  float* scale;            // [rows] or [rows, K / 128]
  int64_t x_stride;        // elements between rows, a multiple of 8
  uint32_t* error;         // tile/report.cuh
  Scaling scaling;         // row or 1x128
};

// One scale per 128x128 block of each matrix.
struct QuantizeBlocksParams {
  int64_t matrices;  // E
  int64_t rows;      // N
  int64_t width;     // K, a multiple of 128
  const void* x;     // [E, N, K] bf16 contiguous
  void* q;           // [E, N, K] e4m3 contiguous
  float* scale;      // [E, ceil(N / 128), K / 128]
};

// One scale per matrix.
struct QuantizeTensorParams {
  int64_t matrices;  // E
  int64_t elements;  // of a matrix, a multiple of 8
  const void* x;     // [E, elements] bf16 contiguous
  void* q;           // [E, elements] e4m3 contiguous
  float* scale;      // [E]
  uint32_t* maxima;  // workspace of quantize_tensor_workspace() words
};

cudaError_t quantize_rows(const QuantizeRowsParams& params, cudaStream_t stream);
cudaError_t quantize_blocks(const QuantizeBlocksParams& params, cudaStream_t stream);
int64_t quantize_tensor_workspace(int64_t matrices, int64_t elements);
cudaError_t quantize_tensor(const QuantizeTensorParams& params, cudaStream_t stream);

}  // namespace l4k
