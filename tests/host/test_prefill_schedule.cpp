// Every tile of queries covers its tokens once and visits the keys it must; costs sort as they
// should; every piece has one CTA, and the long ones are spread evenly. No length makes a tile visit
// more keys than the workspace for its sums was sized for. However a batch is cut, every key tile of
// an item lies in one piece, the lists and the partial results have room, and few items share the grid.
#include <algorithm>
#include <vector>

#include "expect.h"
#include "kernels/flash_prefill/schedule.h"
#include "prefill_cut.h"
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

void check_cut(const std::vector<int>& items, int kv_heads, int ctas) {
  for (const PrefillCut& c : prefill_candidates(items, kv_heads, ctas))
    EXPECT(c.pieces == static_cast<int64_t>(items.size()) ||
               c.pieces <= l4k::max_prefill_slots(kv_heads, ctas),
           c.max_tiles << ": " << c.pieces);
  const int max_tiles = prefill_cut(items, kv_heads, ctas).max_tiles;
  int64_t pieces = 0, cut = 0;
  for (int tiles : items) {
    const int count = l4k::count_pieces(tiles, max_tiles);
    const l4k::PrefillPieces parts = l4k::pieces_of(tiles, count);
    EXPECT(1 <= count && count < 1 << 16 && parts.begin(0) == 0 && parts.begin(count) == tiles,
           "every key tile once: " << tiles << " in " << count);
    for (int k = 0; k < count; ++k) {
      const int own = parts.begin(k + 1) - parts.begin(k);
      EXPECT(own <= std::max(max_tiles, 1) && own >= (tiles > 0) && own >= tiles / count, own);
    }
    pieces += count;
    cut += count > 1;
  }
  EXPECT(pieces <= l4k::max_prefill_pieces(items.size()), pieces);
  EXPECT(cut <= l4k::max_prefill_cut(items.size()), cut);
  EXPECT(2 * cut <= l4k::max_prefill_slots(kv_heads, ctas), "as the kernels bound it: " << cut);
}

// Chunks, lengths and heads of serving: the busiest CTA's share, and who is left alone.
void check_cuts() {
  for (int ctas : {1, 2, 7, 132, 256})
    for (int kv_heads : {1, 2, 8, 16})
      for (int items = 1; l4k::may_cut(items, kv_heads, ctas); items += 1 + items / 5)
        for (int tiles : {0, 1, 2, 3, 8, 63, 64, 1024, 8192, 16'777'216}) {
          check_cut(std::vector<int>(items, tiles), kv_heads, ctas);
          std::vector<int> mixed(items, std::max(tiles / 100, 1));
          mixed[items / 2] = tiles;
          check_cut(mixed, kv_heads, ctas);
          for (int i = 0; i < items; ++i) mixed[i] = static_cast<int>(int64_t{tiles} * i / items);
          check_cut(mixed, kv_heads, ctas);
        }
  // Scout on 132 SMs: 17 tokens at 8K and 128K keys fill the grid, a short sequence is left whole.
  const auto chosen = [](int tiles, int kv_heads) {
    return prefill_cut({tiles}, kv_heads, 132).max_tiles;
  };
  EXPECT(chosen(64, 8) == 4 && chosen(1024, 8) == 64 && chosen(1024, 1) == 8, chosen(64, 8));
  for (int tiles : {1, 2, 3, 4}) EXPECT(chosen(tiles, 8) == tiles, tiles);
  // 1,000 tokens are 40 items: three for some CTAs and two for the others, unless they are halved.
  const int half = prefill_cut(std::vector<int>(40, 1024), 8, 132).max_tiles;
  EXPECT(l4k::count_pieces(1024, half) == 2, half);
  EXPECT(l4k::may_cut(49, 8, 132) && !l4k::may_cut(50, 8, 132) && !l4k::may_cut(0, 8, 132), "");
  const int64_t whole = 4 * 1024 + l4k::kItemCost;
  for (int items = 1; items <= 16; ++items) {  // a single wave
    const int64_t cost = prefill_cut(std::vector<int>(items, 1024), 8, 132).cost;
    EXPECT(cost * 132 <= 1.35 * whole * items * 8, items << ": " << cost);
  }
  EXPECT(l4k::merge_warps(2) == 1 && l4k::merge_warps(16) == 2 && l4k::merge_warps(132) == 8, "");
  EXPECT(l4k::prefill_ctas(1, 8, 8192, 132) == 132 && l4k::prefill_ctas(1, 8, 128, 132) == 16, "");
  EXPECT(l4k::prefill_ctas(0, 8, 8192, 132) == 1 && l4k::prefill_ctas(9, 8, 64, 400) == 72, "");
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
  check_cuts();
  return 0;
}
