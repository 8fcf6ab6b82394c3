// The configurations of the int4 product for many tokens. Integers only.
#pragma once
#include "tile/base.h"

namespace l4k {

constexpr int kNumW4GemmConfigs = 0;

}  // namespace l4k
