// The accumulator map covers every element of the 64 x N tile exactly once, in every N.
#include <set>
#include <utility>

#include "expect.h"
#include "tile/fragment.h"

int main() {
  for (int n = 8; n <= 256; n += 8) {
    std::set<std::pair<int, int>> seen;
    for (int thread = 0; thread < 128; ++thread) {
      for (int r = 0; r < n / 2; ++r) {
        auto [row, col] = l4k::accumulator_coordinate(thread, r);
        EXPECT(row >= 0 && row < 64 && col >= 0 && col < n, thread << " " << r);
        seen.insert({row, col});
      }
    }
    EXPECT(static_cast<int>(seen.size()) == 64 * n, "n = " << n);
  }
  // PTX ISA, figure of the D fragment: thread 5 (lane 5) holds row 1, columns 2 and 3 first.
  auto [row, col] = l4k::accumulator_coordinate(5, 1);
  EXPECT(row == 1 && col == 3, row << " " << col);
  return 0;
}
