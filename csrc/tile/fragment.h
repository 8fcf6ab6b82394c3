// Which element of a tile a thread of a warpgroup holds in which register.
#pragma once
#include "tile/base.h"

namespace l4k {

struct Coordinate {
  int row, col;
};

// Accumulator of wgmma m64nN: register `r` (0 .. N/2-1) of `thread` (0..127) in the warpgroup.
// PTX ISA: wgmma, register fragment of D.
L4K_HD constexpr Coordinate accumulator_coordinate(int thread, int r) {
  int warp = thread / 32, lane = thread % 32;
  return {16 * warp + lane / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * (lane % 4) + r % 2};
}

}  // namespace l4k
