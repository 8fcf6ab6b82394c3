// Every tile of queries covers its tokens once and visits the keys it must; costs sort as they
// should; every item has one CTA, and the long items are spread evenly. No length makes a tile visit
// more keys than the workspace for its sums was sized for.
#include <algorithm>
#include <vector>

#include "expect.h"
#include "kernels/flash_prefill/schedule.h"
#include "tile/divide.h"

namespace {

void check_tiles(int len_q, int len_k, int group, int64_t chunk) {
  const int per_tile = l4k::prefill_tokens(group);
  EXPECT(per_tile * group <= 128 && (per_tile + 1) * group > 128, group);
  int next = 0, tiles = 0;
  for (; next < len_q; ++tiles) {
    const l4k::PrefillTile tile =
        l4k::prefill_tile(tiles, len_q, len_k, group, chunk, int64_t{1} << 31);
    EXPECT(tile.first_token == next && 1 <= tile.tokens && tile.tokens <= per_tile, tiles);
    EXPECT(tile.position == len_k - len_q + next, "position");
    next += tile.tokens;
    for (int token = 0; token < tile.tokens; ++token) {
      const l4k::Span keys = l4k::visible_keys(tile.position + token, chunk);
      if (keys.empty()) continue;
      EXPECT(tile.first_key <= keys.first && keys.end <= tile.end_key, "keys");
      EXPECT(int64_t{tile.first_tile} * 128 <= keys.first, "first tile");
      EXPECT(int64_t{tile.end_tile} * 128 >= keys.end, "last tile");
      if (tile.first_whole < tile.end_whole)
        EXPECT(keys.first <= int64_t{tile.first_whole} * 128 &&
                   int64_t{tile.end_whole} * 128 <= keys.end,
               "whole tiles");
    }
  }
  EXPECT(next == len_q, len_q);
  EXPECT(tiles <= l4k::max_prefill_items(len_q, 1, len_q, group), "bound");
}

// A length beyond the block table costs one tile of keys past it, and that one is visited.
void check_capacity(int len_k, int64_t chunk, int64_t capacity) {
  for (int tile = 0; tile < 6; ++tile) {
    const auto whole = l4k::prefill_tile(tile, 130, len_k, 5, chunk, int64_t{1} << 31);
    const auto cut = l4k::prefill_tile(tile, 130, len_k, 5, chunk, capacity);
    EXPECT(cut.end_tile - cut.first_tile <= l4k::max_key_tiles(chunk, capacity), "bound");
    EXPECT(cut.first_tile == whole.first_tile && cut.end_tile <= whole.end_tile, tile);
    if (whole.end_key <= capacity) EXPECT(cut.end_tile == whole.end_tile, tile);
    if (whole.end_key > capacity) {
      const int64_t seen = std::max<int64_t>(capacity, whole.first_key);
      EXPECT(cut.first_tile <= seen / 128 && seen / 128 == cut.end_tile - 1, tile);
    }
  }
}

void check_division(int group) {
  const auto divisor = l4k::SmallDivisor::of(group);
  EXPECT(divisor.value == group, group);
  for (int n = 0; n < 65536 / group; ++n) EXPECT(divisor.quotient(n) == n / group, n);
}

void check_snake(int items, int ctas) {
  std::vector<int> seen(items, 0);
  std::vector<long> load(ctas, 0);
  for (int cta = 0; cta < ctas; ++cta)
    for (int round = 0; round * ctas < items; ++round) {
      const int index = l4k::snake(round, cta, ctas);
      if (index >= items) continue;
      ++seen[index];
      load[cta] += items - index;  // a causal sequence: costs fall evenly
    }
  for (int i = 0; i < items; ++i) EXPECT(seen[i] == 1, "item " << i << ": " << seen[i]);
  const auto [least, most] = std::minmax_element(load.begin(), load.end());
  EXPECT(*most - *least <= 2L * std::max(items, ctas), "load " << *least << " to " << *most);
  if (items >= 16 * ctas) EXPECT(*most <= 1.05 * *least, "load " << *least << " to " << *most);
}

}  // namespace

int main() {
  for (int group = 1; group <= 16; ++group)
    for (int64_t chunk : {0, 1, 3, 64, 128, 8192})
      for (int len_q : {0, 1, 7, 8, 25, 26, 128, 129, 300})
        for (int len_k : {0, 1, len_q - 1, len_q, len_q + 1, len_q + 127, 8192, 16385, 10'485'760})
          if (len_k >= 0) check_tiles(len_q, len_k, group, chunk);
  for (int group = 1; group <= 16; ++group) check_division(group);
  check_tiles(130, 0x7fffffff, 5, 0);
  for (int len_k : {130, 500, 1000, 8192, 16400, 0x7fffffff})
    for (int64_t chunk : {0, 1, 64, 100, 8192})
      for (int64_t capacity : {0, 8, 128, 136, 512, 8192, 16384})
        check_capacity(len_k, chunk, capacity);
  EXPECT(l4k::max_key_tiles(0, 65536) == l4k::kAnchorTiles + 1, "anchors");
  EXPECT(l4k::max_key_tiles(8192, 10'485'760) < l4k::kAnchorTiles, "chunks need none");
  EXPECT(l4k::max_prefill_items(1000, 4, 1000, 5) == 44, "rows");
  EXPECT(l4k::max_prefill_items(1000, 40, 25, 5) == 40, "lengths");
  for (int64_t cost = 0; cost < 1 << 24; cost += 1 + cost / 1000) {
    const int a = l4k::cost_class(cost), b = l4k::cost_class(cost + 1 + cost / 32);
    EXPECT(0 <= a && a < b && b < l4k::kPrefillClasses, cost);
    EXPECT(l4k::cost_class(cost + 1) >= a, cost);
  }
  for (int ctas : {1, 2, 7, 132})
    for (int items : {0, 1, 5, 131, 132, 133, 264, 265, 2624, 5000}) check_snake(items, ctas);
  return 0;
}
