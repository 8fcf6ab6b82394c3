// Tiles of queries, what each costs, and which CTA takes which: longest first. Integers only; the
// kernels and the host test share it.
//
//   item    a tile of queries of one sequence, for every KV head
//   piece   consecutive key tiles of an item, what a CTA computes at a time. Items are cut where they
//           are too few for the grid; then pieces leave partial results in slots, and a last launch
//           merges those of an item in order
//
// How an item is cut depends on its key tiles and on one number for the whole batch, never on its
// place in it: equal rows give equal bits anywhere in a batch. Where there are enough items for the
// grid none is cut, and its bits depend on nothing else in the batch.
#pragma once
#include "tile/base.h"
#include "tile/mask.h"

namespace l4k {

constexpr int kPrefillRows = 128;  // of a tile of queries: tokens x heads of one KV head
constexpr int kPrefillKeys = 128;  // of a tile of keys
constexpr int kAnchorTiles = 512;  // of keys, 64K keys, that one accumulator adds up (anchor.cuh)

// CTAs that share the pieces; also what bounds a plan on any GPU.
constexpr int kPrefillMaxCtas = 256;
constexpr int kPrefillWaves = 5;   // pieces of a cut batch for each CTA, at most
constexpr int kPrefillMaxCut = 3;  // items for each CTA; of more, none is cut

// Piece `piece` of tile `tile` of sequence `sequence`, for every KV head.
struct alignas(16) PrefillItem {
  int sequence, tile;
  int slot;  // of piece 0, in units of KV heads
  uint16_t piece, pieces;
};

// What a plan is made for, and what another call than that may not use.
struct PrefillShape {
  int rows, batch, max_seqlen_q;
  int num_heads, kv_heads;
  int chunk, capacity;  // capacity: keys that a row of the block table has a place for
  int ctas;

  L4K_HD constexpr bool operator==(const PrefillShape& b) const {
    return rows == b.rows && batch == b.batch && max_seqlen_q == b.max_seqlen_q &&
           num_heads == b.num_heads && kv_heads == b.kv_heads && chunk == b.chunk &&
           capacity == b.capacity && ctas == b.ctas;
  }
};

// What the planning kernel leaves for the others; the list of pieces follows it, then piece 0 of all
// items that are cut, then the lengths that all this was made from: cu_seqlens_q and seqlens_k.
struct alignas(16) PrefillPlan {
  PrefillShape shape;
  int rows;         // of Q that belong to a sequence
  int pieces, cut;  // lengths of the lists
  int merge_warps;  // that share a row when pieces are merged: 1, 2, 4 or 8
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

// Cutting is considered where there are fewer items than three for each CTA.
L4K_HD constexpr bool may_cut(int64_t items, int kv_heads, int ctas) {
  return items > 0 && items * kv_heads < kPrefillMaxCut * ctas;
}

// The CTAs of a launch on `sms` SMs, from shapes alone. At least one: there may be rows that no
// sequence owns.
L4K_HD constexpr int prefill_ctas(int64_t items, int kv_heads, int64_t capacity, int sms) {
  sms = sms < kPrefillMaxCtas ? sms : kPrefillMaxCtas;
  int64_t works = items * kv_heads;
  if (may_cut(items, kv_heads, sms)) works *= capacity / kPrefillKeys + 1;
  return static_cast<int>(works < 1 ? 1 : works < sms ? works : sms);
}

// Lengths of a plan's lists, on any GPU and for any lengths.
L4K_HD constexpr int64_t max_prefill_pieces(int64_t items) {
  constexpr int64_t kCut = kPrefillWaves * kPrefillMaxCtas;
  return items > kCut ? items : kCut;
}
L4K_HD constexpr int64_t max_prefill_cut(int64_t items) {
  constexpr int64_t kCut = kPrefillMaxCut * kPrefillMaxCtas;
  return items < kCut ? items : kCut;
}

L4K_HD constexpr int64_t prefill_list_items(int64_t items) {
  return max_prefill_pieces(items) + max_prefill_cut(items);
}

// Words of a plan before its lengths, and all.
L4K_HD constexpr int64_t prefill_lengths_at(int64_t items) {
  return (sizeof(PrefillPlan) + prefill_list_items(items) * sizeof(PrefillItem)) / sizeof(int);
}
L4K_HD constexpr int64_t prefill_plan_words(int64_t items, int64_t batch) {
  return prefill_lengths_at(items) + 2 * batch + 1;
}

// Partial results of a launch, at most, in units of KV heads.
L4K_HD constexpr int max_prefill_slots(int kv_heads, int ctas) {
  return kPrefillWaves * ctas / kv_heads;
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

// The key tiles of an item's pieces: as even as whole tiles allow.
struct PrefillPieces {
  int count, quotient, remainder;

  // Tiles of the item before piece k.
  L4K_HD constexpr int begin(int k) const { return k * quotient + (k < remainder ? k : remainder); }
};

L4K_HD constexpr PrefillPieces pieces_of(int tiles, int count) {
  return {count, tiles / count, tiles % count};
}

// What the choice of pieces needs to know of a batch, for one KV head.
struct PrefillTotals {
  int items, largest;        // largest: key tiles of one item
  unsigned long long tiles;  // of all items; of a type that has atomics
};

// Costs in quarters of a key tile, by tools/model: 1.5 tiles an item; its partial result, written and
// read, 1.8; the launch that merges, 1.3.
constexpr int kItemCost = 6, kPartialCost = 7, kMergeCost = 5;
constexpr int kCutCandidates = 1 + 2 * kPrefillWaves;

// Key tiles of a piece, at most. The first candidate cuts nothing; the others fill so many waves of
// CTAs: exact for equal items, or a bound that very different ones keep. No candidate makes more
// pieces than max_prefill_slots().
L4K_HD constexpr int cut_candidate(const PrefillTotals& t, int kv_heads, int ctas, int candidate) {
  const int room = (candidate + 1) / 2 * ctas / kv_heads;  // pieces of a KV head
  int64_t tiles = t.largest;
  if (room > t.items)
    tiles = candidate % 2 == 1 ? ceil_div(t.largest, room / t.items)
                               : ceil_div<int64_t>(t.tiles, room - t.items);
  return static_cast<int>(tiles < 1 ? 1 : tiles < t.largest ? tiles : t.largest);
}

L4K_HD constexpr int count_pieces(int tiles, int max_tiles) {
  return tiles <= max_tiles ? 1 : ceil_div(tiles, max_tiles);
}

// What it costs to compute `pieces` pieces of a KV head, of at most `max_tiles` tiles: the dealing
// gives every CTA as many of them, or one less.
L4K_HD constexpr int64_t cut_cost(const PrefillTotals& t, int kv_heads, int ctas, int max_tiles,
                                  int64_t pieces) {
  const int64_t works = pieces * kv_heads, rounds = ceil_div<int64_t>(works, ctas);
  if (works == 0) return 0;
  const int64_t even = rounds * (static_cast<int64_t>(4 * t.tiles) * kv_heads / works + kItemCost);
  const int64_t longest = 4 * int64_t{max_tiles} + kItemCost;
  const int64_t cost = even > longest ? even : longest;
  return max_tiles < t.largest ? cost + rounds * kPartialCost + kMergeCost : cost;
}

// Warps that share a row when the pieces of an item are merged.
L4K_HD constexpr int merge_warps(int most_pieces) {
  int warps = 1;
  while (warps < 8 && most_pieces > 8 * warps) warps *= 2;
  return warps;
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
