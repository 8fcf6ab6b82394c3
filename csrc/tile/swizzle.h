// Where TMA's swizzle puts a byte of a shared-memory tile, and which bank it lands in.
#pragma once
#include "tile/base.h"

namespace l4k {

// The 128-byte swizzle permutes the eight 16-byte chunks of a 128-byte row by the row's index
// modulo 8, so that 8 rows read at one column hit 8 different bank groups. `offset` is relative to
// a 1024-byte aligned tile.
L4K_HD constexpr uint32_t swizzle_128(uint32_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

// Shared memory has 32 banks of 4 bytes.
L4K_HD constexpr uint32_t bank(uint32_t offset) { return offset >> 2 & 31; }

}  // namespace l4k
