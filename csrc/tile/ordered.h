// Floating-point order as integer order. Compiles under g++.
#pragma once
#include "tile/base.h"

namespace l4k {

// Float bits to an unsigned integer of the same order; 0 is below every number, -inf included.
L4K_HD constexpr uint32_t ordered_key(uint32_t bits) {
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The float of a key.
L4K_HD constexpr uint32_t ordered_bits(uint32_t key) {
  return key >> 31 ? key & 0x7fffffffu : ~key;
}

}  // namespace l4k
