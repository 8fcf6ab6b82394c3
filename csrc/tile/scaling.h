// What shares a scale in an e4m3 tensor. The names are those of the ops' argument.
#pragma once
#include "tile/base.h"

namespace l4k {

enum Scaling : int { kScalingNone, kScalingTensor, kScalingRow, kScaling1x128, kScaling128x128 };

constexpr int kScaleBlock = 128;  // elements along K in a 1x128 or 128x128 block

}  // namespace l4k
