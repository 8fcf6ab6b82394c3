// Where TMA's swizzle puts a byte of a shared-memory tile, and which bank it lands in.
#pragma once
#include "tile/base.h"

namespace l4k {

// A swizzle permutes the 16-byte chunks of a row of kSpan bytes (32, 64 or 128) by the index of the
// 128 bytes that hold the row, so that 8 rows read at one column hit 8 different bank groups. `offset`
// is relative to a 1024-byte aligned tile.
template <int kSpan>
L4K_HD constexpr uint32_t swizzle(uint32_t offset) {
  return offset ^ ((offset >> 7 & (kSpan / 16 - 1)) << 4);
}
L4K_HD constexpr uint32_t swizzle_128(uint32_t offset) { return swizzle<128>(offset); }

// Shared memory has 32 banks of 4 bytes.
L4K_HD constexpr uint32_t bank(uint32_t offset) { return offset >> 2 & 31; }

}  // namespace l4k
