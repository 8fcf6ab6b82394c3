// How a copy of rows is cut into tiles of one CTA each. Compiles under g++.
#pragma once
#include "tile/base.h"

namespace l4k {

struct RowTiles {
  int threads;    // per CTA
  int row_tiles;  // per row; a tile is `threads * unroll` consecutive vectors
};

// As few tiles as `max_threads` allows, all of nearly the same size, so that no CTA of a row of,
// say, 640 vectors is left with a small rest.
L4K_HD constexpr RowTiles tile_rows(int64_t row_vectors, int unroll, int max_threads) {
  const int64_t tiles = ceil_div<int64_t>(row_vectors, int64_t{max_threads} * unroll);
  if (tiles == 0) return {32, 0};
  return {static_cast<int>(round_up<int64_t>(ceil_div(row_vectors, tiles * unroll), 32)),
          static_cast<int>(tiles)};
}

}  // namespace l4k
