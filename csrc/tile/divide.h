// Division of small numbers by one divisor: a product and a shift.
#pragma once
#include "tile/base.h"

namespace l4k {

struct SmallDivisor {
  int value;
  uint32_t factor;

  static constexpr SmallDivisor of(int value) {
    return {value, 65536u / static_cast<uint32_t>(value) + 1};
  }

  // n / value for 0 <= n < 65536 / value: the factor is less than 1 too large, and so the product
  // less than n.
  L4K_HD constexpr int quotient(int n) const {
    return static_cast<int>(static_cast<uint32_t>(n) * factor >> 16);
  }
};

}  // namespace l4k
