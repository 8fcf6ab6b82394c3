// The inputs of the next decoding step from the tokens of this one
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

struct AdvanceStepParams {
  int64_t rows;     // B
  int64_t vocab;    // tokens below it have a bit, and a tally
  int64_t columns;  // P
  int kinds;        // K, of layers
  int page_size;
  const int64_t* sampled;     // [B]
  int64_t* ids;               // [B]
  int64_t* positions;         // [B]
  int* seqlens_k;             // [B], 0: no request
  int64_t* generated;         // [B]
  const int64_t* max_tokens;  // [B]
  const int* stop_bits;       // [B, >= vocab / 32]
  int64_t* slots;             // [K, B]
  const int* block_tables;    // [K, B, P]
  int64_t* results;           // [2, B]: tokens, codes
  int* tally;                 // [B, vocab] or null
  int* feature_rows;          // [B] or null
  int64_t stop_stride;        // elements between rows
  int64_t slots_stride;
  int64_t table_stride, kind_stride;  // between rows, between kinds
  int64_t results_stride;
  int64_t tally_stride;
};

cudaError_t advance_step(const AdvanceStepParams& params, cudaStream_t stream);

}  // namespace l4k
