// What follows a product, as the ops have it: act(row_scale * sums + bias) + residual.
#pragma once
#include "tile/base.h"

namespace l4k {

enum class Activation : int { kNone, kGelu, kSwiglu };

struct Epilogue {
  void* d;                  // [M, N'] bf16 or float32, contiguous; N' = N / 2 for SwiGLU
  const float* row_scale;   // [M]; null: 1
  const void* bias;         // [N] bf16; null: 0
  const void* residual;     // [M, N'] bf16; null: 0
  int64_t residual_stride;  // elements between rows
  Activation activation;
  bool out_float32;
};

}  // namespace l4k
