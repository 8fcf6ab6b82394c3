// What the planner of flash_prefill chooses, one candidate after the other.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/flash_prefill/schedule.h"

struct PrefillCut {
  int max_tiles;
  int64_t pieces, cost;  // of a KV head; in quarters of a key tile
};

// By the key tiles of a KV head's items. Of equal cost, the longest pieces.
inline std::vector<PrefillCut> prefill_candidates(const std::vector<int>& items, int kv_heads,
                                                  int ctas) {
  l4k::PrefillTotals totals{static_cast<int>(items.size()), 0, 0};
  for (int tiles : items) totals.largest = std::max(totals.largest, tiles), totals.tiles += tiles;
  std::vector<PrefillCut> found;
  for (int candidate = 0; candidate < l4k::kCutCandidates; ++candidate) {
    const int tiles = l4k::cut_candidate(totals, kv_heads, ctas, candidate);
    int64_t pieces = 0;
    for (int own : items) pieces += l4k::count_pieces(own, tiles);
    found.push_back({tiles, pieces, l4k::cut_cost(totals, kv_heads, ctas, tiles, pieces)});
  }
  return found;
}

inline PrefillCut prefill_cut(const std::vector<int>& items, int kv_heads, int ctas) {
  const std::vector<PrefillCut> all = prefill_candidates(items, kv_heads, ctas);
  return *std::min_element(all.begin(), all.end(), [](const PrefillCut& a, const PrefillCut& b) {
    return a.cost != b.cost ? a.cost < b.cost : a.max_tiles > b.max_tiles;
  });
}
