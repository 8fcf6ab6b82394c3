// Biases, penalties and bans of logits, each row with settings of its own
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

constexpr int kProcessLogitsMaxVocab = 1 << 30;

struct ProcessLogitsParams {
  int64_t rows;                     // B
  int vocab;                        // V
  bool float32;                     // logits; else bf16
  const void* logits;               // [B, V]
  const int* tally;                 // [B, V], 2 * times generated + in the prompt
  const float* bias;                // [B, V]
  const int* allowed;               // [B, V / 32], bits
  const int* stop_bits;             // [B, V / 32], bits
  const int64_t* generated;         // [B]
  const int64_t* min_tokens;        // [B]
  const float* repetition_penalty;  // [B]
  const float* frequency_penalty;   // [B]
  const float* presence_penalty;    // [B]
  const int* active;                // [B], 0: a copy
  float* out;                       // [B, V], contiguous
  int64_t logits_stride;            // elements between rows
  int64_t tally_stride;
  int64_t bias_stride;
  int64_t allowed_stride;
  int64_t stop_stride;
};

cudaError_t process_logits(const ProcessLogitsParams& params, cudaStream_t stream);

}  // namespace l4k
