// Which tile of a ragged matrix product comes next. Integers only: the kernel and the host test
// share it.
//
// Rows are sorted by expert; expert e owns rows [offsets[e], offsets[e + 1]) and cuts them into
// tiles of block_m from its first row on, so no tile holds rows of two experts. A dense product is
// one expert with all rows.
#pragma once
#include "tile/base.h"

namespace l4k {

constexpr int kMaxExperts = 256;

// One output tile: `row` counts in the whole matrix, rows at and past `row_end` are not its own.
struct RaggedTile {
  int expert;
  int row, row_end;
  int column;
  bool tail;  // half as high and twice as wide as other tiles
};

// `row_ends[e]` ends the rows of expert e and `tile_ends[e]` its tiles, both as running totals; the
// arrays usually live in shared memory.
struct RaggedSchedule {
  int num_experts;
  int block_m, block_n;
  int column_tiles;
  // Columns of tiles that run side by side: CTAs that run together then share A and B in L2.
  int raster;
  bool tail_tiles;  // an expert's last rows, if they fill at most half a tile, go to tail tiles
  const int* row_ends;
  const int* tile_ends;

  L4K_HD int num_tiles() const { return tile_ends[num_experts - 1]; }

  // Tiles of an expert: rows of ordinary ones, then tail tiles.
  L4K_HD int row_tiles(int rows) const {
    return (rows + (tail_tiles ? block_m / 2 : block_m) - 1) / block_m;
  }
  L4K_HD int tiles(int rows) const {
    const int full = row_tiles(rows);
    return full * column_tiles + (rows > full * block_m ? ceil_div(column_tiles, 2) : 0);
  }

  L4K_HD RaggedTile at(int index) const {
    int low = 0, high = num_experts - 1;
    while (low < high) {  // the first expert whose tiles end after `index`
      int middle = (low + high) / 2;
      if (index < tile_ends[middle]) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    const int first_row = low == 0 ? 0 : row_ends[low - 1];
    const int full = row_tiles(row_ends[low] - first_row);
    int local = index - (low == 0 ? 0 : tile_ends[low - 1]);
    if (local >= full * column_tiles) {
      const int column = 2 * (local - full * column_tiles) * block_n;
      return {low, first_row + full * block_m, row_ends[low], column, true};
    }
    const int group = local / (full * raster);
    const int group_width = min(raster, column_tiles - group * raster);
    local -= group * full * raster;
    const int row = first_row + local / group_width * block_m;
    return {low, row, min(row + block_m, row_ends[low]),
            (group * raster + local % group_width) * block_n, false};
  }

 private:
  static L4K_HD int min(int a, int b) { return a < b ? a : b; }
};

// Row tiles that any offsets over `rows` rows can need: the static bound of a grid.
L4K_HD constexpr int max_row_tiles(int rows, int num_experts, int block_m) {
  const int full = rows / block_m;
  const int partial = rows < num_experts ? rows : num_experts;
  const int all = full + partial;
  return num_experts == 1 ? ceil_div(rows, block_m) : all;
}

}  // namespace l4k
