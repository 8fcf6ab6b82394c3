// Tiles of queries, what each costs, and which CTA takes which: longest first. Integers only; the
// kernels and the host test share it.
#pragma once
#include "tile/base.h"
#include "tile/mask.h"

namespace l4k {

constexpr int kPrefillRows = 128;  // of a tile of queries: tokens x heads of one KV head
constexpr int kPrefillKeys = 128;  // of a tile of keys
constexpr int kAnchorTiles = 512;  // of keys, 64K keys, that one accumulator adds up (anchor.cuh)

// Tile `tile` of sequence `sequence`, for every KV head.
struct PrefillItem {
  int sequence, tile;
};

// What the planning kernel leaves for the main one; `items` items follow it.
struct PrefillPlan {
  int items;
  int rows;  // of Q that belong to a sequence
};

L4K_HD constexpr int prefill_tokens(int group) { return kPrefillRows / group; }

// Items that any lengths can need: the static bound of list and grid.
L4K_HD constexpr int64_t max_prefill_items(int64_t rows, int64_t batch, int64_t max_seqlen_q,
                                           int group) {
  const int tokens = prefill_tokens(group);
  const int64_t by_rows = rows / tokens + batch;
  const int64_t by_length = batch * ceil_div<int64_t>(max_seqlen_q, tokens);
  return by_rows < by_length ? by_rows : by_length;
}

// What is computed at once: up to 128 / group tokens, for one KV head. Lengths are 32-bit, so are
// positions.
struct PrefillTile {
  int first_token, tokens;     // in the sequence
  int position;                // of the first token; negative ones see nothing
  int first_key, end_key;      // that some token sees
  int first_tile, end_tile;    // tiles of keys to visit
  int first_whole, end_whole;  // of those, the ones that all tokens see entirely
};

// `capacity` keys have a place in the block table. Past it (an invalid length) at most one tile is
// visited: it has no page, which is an error for the rows that see it.
L4K_HD constexpr PrefillTile prefill_tile(int tile, int len_q, int len_k, int group, int64_t chunk,
                                          int64_t capacity) {
  const int first = tile * prefill_tokens(group), left = len_q - first;
  const int tokens = left < prefill_tokens(group) ? left : prefill_tokens(group);
  const int64_t position = int64_t{len_k} - len_q + first;
  const Span queries = {position, position + tokens}, keys = keys_of_any(queries, chunk);
  const KeyTiles tiles = key_tiles(queries, chunk, kPrefillKeys);
  const int64_t past_capacity = capacity / kPrefillKeys;
  const int64_t last = past_capacity < tiles.touched.first ? tiles.touched.first : past_capacity;
  const int64_t end_tile = tiles.touched.end <= last ? tiles.touched.end : last + 1;
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  return {.first_token = first,
          .tokens = tokens,
          .position = narrow(position),
          .first_key = narrow(keys.first),
          .end_key = narrow(keys.end),
          .first_tile = narrow(tiles.touched.first),
          .end_tile = narrow(end_tile),
          .first_whole = narrow(tiles.whole.first),
          .end_whole = narrow(tiles.whole.end)};
}

// Tiles of keys that a tile of queries visits, whatever the lengths are: the bound for anchors.
L4K_HD constexpr int64_t max_key_tiles(int64_t chunk, int64_t capacity) {
  const int64_t by_capacity = capacity / kPrefillKeys + 1;
  const int64_t by_chunk = (chunk + kPrefillRows) / kPrefillKeys + 2;
  return chunk == 0 || by_capacity < by_chunk ? by_capacity : by_chunk;
}

// Costs (in key tiles) that differ by less than 1/32 share a class; a higher class costs more.
constexpr int kPrefillClasses = 1024;

L4K_HD constexpr int cost_class(int64_t cost) {
  int shift = 0;
  while (cost >> shift >= 64) ++shift;
  return 32 * shift + static_cast<int>(cost >> shift);
}

// The index of a CTA's item in a round over the sorted list. Every other round runs backwards:
// the CTA with the longest item of one round gets the shortest of the next.
L4K_HD constexpr int snake(int round, int cta, int ctas) {
  return round * ctas + (round % 2 == 0 ? cta : ctas - 1 - cta);
}

}  // namespace l4k
