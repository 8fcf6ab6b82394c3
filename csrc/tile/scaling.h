// What shares a scale in an e4m3 tensor. The names are those of the ops' argument.
#pragma once
#include "tile/base.h"

namespace l4k {

enum Scaling : int { kScalingNone, kScalingTensor, kScalingRow, kScaling1x128, kScaling128x128 };

constexpr int kScaleBlock = 128;  // elements along K in a 1x128 or 128x128 block

// How an operand of a product is scaled. A: per matrix, per row, per row and 128 of K. B: per matrix,
// per output channel, per 128 x 128 block.
enum class GemmScale : int { kNone, kTensor, kRow, kBlock };

struct GemmScales {
  GemmScale kind_a, kind_b;
  const float* a;  // [1], [M] or [M, K / 128]
  const float* b;  // [E, 1], [E, N] or [E, N / 128, K / 128]

  // Whether sums must leave the tensor core at every block.
  constexpr bool along_k() const {
    return kind_a == GemmScale::kBlock || kind_b == GemmScale::kBlock;
  }
};

}  // namespace l4k
