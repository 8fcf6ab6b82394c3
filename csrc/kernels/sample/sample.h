// The next token of each row of logits, and log-probabilities
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace l4k {

constexpr int kSampleCluster = 8;               // CTAs per row
constexpr int kSampleMaxVocab = 8 * 56 * 1024;  // a row lies in the shared memory of its cluster

struct SampleParams {
  int64_t rows;              // B
  int vocab;                 // V <= kSampleMaxVocab
  int num_top;               // n
  const void* logits;        // [B, V] bf16 or float32
  const float* temperature;  // [B]
  const int* top_k;          // [B]
  const float* top_p;        // [B]
  const float* min_p;        // [B]
  const int64_t* seeds;      // [B]
  const int64_t* counters;   // [B]
  int64_t* ids;              // [B]
  float* logprobs;           // [B]
  int64_t* top_ids;          // [B, n]
  float* top_logprobs;       // [B, n]
  int64_t logits_stride;     // elements between rows
  bool float32;              // logits
};

cudaError_t sample(const SampleParams& params, cudaStream_t stream);

}  // namespace l4k
