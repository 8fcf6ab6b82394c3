// out[t] = image_rows[t] >= 0 ? image_features[image_rows[t]] : weight[input_ids[t]]
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

struct EmbedParams {
  int64_t tokens;              // T
  int64_t vocab;               // V
  int64_t num_features;        // R
  int64_t row_vectors;         // 16-byte vectors in a row
  const void* input_ids;       // [T] int64 or int32
  const void* weight;          // [V, D] bf16, 16-byte aligned rows
  const void* image_features;  // [R, D] bf16, 16-byte aligned rows
  const int* image_rows;       // [T], -1 at a text token; null: only text
  void* out;                   // [T, D] bf16 contiguous
  int64_t weight_stride;       // 16-byte vectors between rows
  int64_t features_stride;
  uint32_t* error;  // tile/report.cuh
  bool wide_ids;    // input_ids are int64
};

cudaError_t embed(const EmbedParams& params, cudaStream_t stream);

}  // namespace l4k
