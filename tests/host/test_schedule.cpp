// Every element of a ragged product belongs to exactly one tile, whatever the offsets; the static
// bound of the grid is never too small.
#include <random>
#include <vector>

#include "expect.h"
#include "tile/schedule.h"

namespace {

void check(const std::vector<int>& counts, int n, int block_m, int block_n, int raster,
           bool tail_tiles) {
  std::vector<int> row_ends, tile_ends;
  int rows = 0, tiles = 0;
  const int experts = static_cast<int>(counts.size()), columns = l4k::ceil_div(n, block_n);
  l4k::RaggedSchedule schedule{.num_experts = experts,
                               .block_m = block_m,
                               .block_n = block_n,
                               .column_tiles = columns,
                               .raster = raster,
                               .tail_tiles = tail_tiles,
                               .row_ends = nullptr,
                               .tile_ends = nullptr};
  for (int count : counts) {
    row_ends.push_back(rows += count);
    tile_ends.push_back(tiles += schedule.tiles(count));
  }
  schedule.row_ends = row_ends.data();
  schedule.tile_ends = tile_ends.data();
  EXPECT(tiles <= l4k::max_row_tiles(rows, experts, block_m) * columns, rows << " rows");
  std::vector<int> seen(static_cast<size_t>(rows) * columns, 0);
  for (int i = 0; i < schedule.num_tiles(); ++i) {
    const l4k::RaggedTile tile = schedule.at(i);
    const int first = tile.expert == 0 ? 0 : row_ends[tile.expert - 1];
    EXPECT(tile.row >= first && tile.row_end <= row_ends[tile.expert], "tile " << i);
    EXPECT(tile.row < tile.row_end && tile.row_end - tile.row <= block_m, "tile " << i);
    EXPECT((tile.row - first) % block_m == 0 && tile.column % block_n == 0, "tile " << i);
    EXPECT(tile.column < n, "tile " << i);
    EXPECT(!tile.tail || tile.row_end - tile.row <= block_m / 2, "tile " << i);
    EXPECT(tile.tail || !tail_tiles || tile.row_end - tile.row > block_m / 2, "tile " << i);
    for (int row = tile.row; row < tile.row_end; ++row)
      for (int column = tile.column / block_n, c = 0; c <= tile.tail && column + c < columns; ++c)
        ++seen[static_cast<size_t>(row) * columns + column + c];
  }
  for (size_t i = 0; i < seen.size(); ++i) EXPECT(seen[i] == 1, "element " << i << ": " << seen[i]);
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int block_m : {64, 128, 256}) {
    for (int raster : {1, 3, 8}) {
      for (bool tail : {false, true}) {
        // Scout's and Maverick's products, dense and spread over experts.
        for (int n : {5120, 7168, 16384, 16, 202048}) check({300}, n, block_m, 256, raster, tail);
        check(std::vector<int>(16, 64), 16384, block_m, 256, raster, tail);
        std::vector<int> one_of_128(128, 0);
        one_of_128[77] = 1000;
        check(one_of_128, 5120, block_m, 128, raster, tail);
        check({0, 0, 0}, 256, block_m, 128, raster, tail);
        check({1, 127, 128, 129, 0, 5, 256, 257, 384, 385}, 264, block_m, 128, raster, tail);
        for (int trial = 0; trial < 40; ++trial) {
          std::vector<int> counts(1 + random() % 256);
          for (int& count : counts) count = random() % 3 ? 0 : random() % 300;
          const int n = 8 * (1 + static_cast<int>(random() % 100));
          check(counts, n, block_m, 128, raster, tail);
        }
      }
    }
  }
  return 0;
}
