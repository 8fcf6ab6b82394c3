// How decoding divides the visible keys of a batch among the CTAs of a grid. Integers only, of 32 bits:
// a launch computes the schedule from the lengths in device memory (plan.h), once for all layers of a
// kind, and the host test checks it.
//
//   work item   the rows of one sequence and KV head (at most kDecodeRows of them) and their keys
//   split       consecutive key tiles of a work item, what a CTA computes at a time. An item of one
//               split writes its result; the others leave partial results, which the CTA that
//               finishes last combines
//
// How an item is split depends on its tiles and on one number for the whole batch, never on its
// place in it: equal rows give equal bits anywhere in a batch. Where few items can share the grid
// well there is one wave, and a CTA combines warps and leaves its result once; otherwise there are
// about kDecodeSplitsPerCta splits for each CTA.
//
// The schedule is all items one after the other, each as long as it has tiles, or splits if there is
// one wave. CTA c takes the splits that begin in the c-th of `grid` equal parts of it.
//
// Partial results are combined in two levels: groups of combine_group_size() splits, then the
// groups. A warp has a lane for each, so neither is more than 32.
#pragma once
#include "tile/mask.h"

namespace l4k {

constexpr int kDecodeTile = 64;         // keys
constexpr int kDecodeKeyBlock = 16;     // keys that lie in one page, and that one warp multiplies
constexpr int kDecodeRows = 64;         // queries x heads of a work item
constexpr int kDecodeTokens = 16;       // new ones of a sequence, at most
constexpr int kDecodeSplitsPerCta = 4;  // where there are more items than CTAs can share
constexpr int kDecodeSlotsPerCta = 2 * kDecodeSplitsPerCta;
constexpr int kDecodeMaxGrid = 1024 / kDecodeSplitsPerCta;

// Keys are counted in 32 bits, to the end of the last key block, and so are the tiles of all items.
constexpr int64_t kDecodeMaxKeys = (int64_t{1} << 31) - kDecodeKeyBlock;
constexpr int64_t kDecodeMaxTiles = (int64_t{1} << 31) - 1;

// Of the keys that a row of the block table addresses, those that a sequence may have where a batch
// has so many items.
L4K_HD constexpr int decode_capacity(int64_t addressed, int64_t items) {
  const int64_t tiles = kDecodeMaxTiles / (items > 0 ? items : 1);
  const int64_t most = tiles < kDecodeMaxKeys / kDecodeTile ? tiles * kDecodeTile : kDecodeMaxKeys;
  return static_cast<int>(addressed < most ? addressed : most);
}

struct DecodeShape {
  int batch;
  int kv_heads, row_blocks;  // items of a sequence: KV heads x blocks of rows
  int tokens;                // queries of a sequence
  int chunk;                 // 0: none
  int capacity;              // keys that a sequence may have: decode_capacity()
  int grid;                  // CTAs

  L4K_HD constexpr int items() const { return kv_heads * row_blocks; }
};

// One sequence: the keys that its queries see, and the tiles they lie in. A sequence without keys,
// or with a length that no table holds, has one tile of which it sees nothing.
struct DecodeSequence {
  int first_position;
  int first_key;
  int first_tile, tiles;

  L4K_HD constexpr int end_key(int tokens) const { return first_position + tokens; }
};

L4K_HD constexpr bool decode_length_fits(const DecodeShape& shape, int length) {
  return length >= 0 && length <= shape.capacity;
}

L4K_HD constexpr DecodeSequence decode_sequence(const DecodeShape& shape, int length) {
  const int end = decode_length_fits(shape, length) ? length : 0, first = end - shape.tokens;
  const int first_key = static_cast<int>(keys_of_any({first, end}, shape.chunk).first);
  const int first_tile = first_key / kDecodeTile;
  const int touched = static_cast<int>(ceil_div<int64_t>(end, kDecodeTile)) - first_tile;
  return {first, first_key, first_tile, touched > 0 ? touched : 1};
}

// What the schedule needs to know of all lengths.
struct DecodeTotals {
  uint32_t tiles;    // of all items
  uint32_t largest;  // of one item
};

struct DecodeSplit {
  int first_tile, tiles;  // of the sequence
};

// The splits of a work item: as even as whole tiles allow.
struct ItemSplits {
  int count, quotient, remainder;

  // Tiles of the item before split k.
  L4K_HD constexpr int begin(int k) const { return k * quotient + (k < remainder ? k : remainder); }
};

// How items are split: into as few splits as possible, of at most `max_tiles`. Places in the schedule
// are what the items before take.
struct DecodeSplitting {
  int max_tiles;
  int one_wave;  // no more splits than CTAs: split i belongs to CTA i

  L4K_HD constexpr ItemSplits split(int tiles) const {
    const int count = ceil_div(tiles, max_tiles);
    return {count, tiles / count, tiles % count};
  }
  L4K_HD constexpr uint32_t item_length(const ItemSplits& splits, int tiles) const {
    return static_cast<uint32_t>(one_wave ? splits.count : tiles);
  }
  // Of split k, from the item's begin.
  L4K_HD constexpr uint32_t split_begin(const ItemSplits& splits, int k) const {
    return static_cast<uint32_t>(one_wave ? k : splits.begin(k));
  }
  // Where the partial result of the split that begins at `place` goes. No two of one launch share a
  // slot, and all are below kDecodeSlotsPerCta * grid: where an item has several splits, each is at
  // least half of `max_tiles` long.
  L4K_HD constexpr uint32_t slot(uint32_t place) const {
    return one_wave ? place : 2 * place / static_cast<uint32_t>(max_tiles);
  }
};

L4K_HD constexpr DecodeSplitting choose_splitting(const DecodeTotals& totals, uint32_t items,
                                                  uint32_t grid) {
  uint32_t tiles = ceil_div(totals.tiles, grid * kDecodeSplitsPerCta);
  bool one_wave = false;
  if (items <= grid) {
    // Either bound keeps the number of splits within the grid; the first is exact for equal
    // lengths, the second good for very different ones.
    uint32_t wave = ceil_div(totals.largest, grid / items);
    if (items < grid) {
      const uint32_t other = ceil_div(totals.tiles, grid - items);
      wave = other < wave ? other : wave;
    }
    one_wave = uint64_t{wave} * grid <= uint64_t{totals.tiles} + totals.tiles / 8 || wave == 1;
    if (one_wave) tiles = wave;
  }
  tiles = tiles < totals.largest ? tiles : totals.largest;
  return {static_cast<int>(tiles), one_wave};
}

// Splits of an item that are combined at once.
L4K_HD constexpr int combine_group_size(int splits) { return splits <= 256 ? 16 : 32; }

struct DecodeSchedule {
  DecodeSplitting splitting;
  uint32_t length;

  // Equal parts, but for one tile or split.
  L4K_HD constexpr uint32_t begin_of(uint32_t cta, uint32_t grid) const {
    const uint32_t longer = length % grid;
    return cta * (length / grid) + (cta < longer ? cta : longer);
  }
};

L4K_HD constexpr DecodeSchedule decode_schedule(const DecodeShape& shape,
                                                const DecodeTotals& totals) {
  const auto items = static_cast<uint32_t>(shape.batch) * static_cast<uint32_t>(shape.items());
  const auto grid = static_cast<uint32_t>(shape.grid);
  const DecodeSplitting splitting = choose_splitting(totals, items, grid);
  return {splitting, splitting.one_wave ? grid : totals.tiles};
}

// The split that a CTA is at: the k-th of a sequence's work item.
struct DecodeWork {
  int b, head, block, k;  // sequence, KV head, block of its rows
  uint32_t item_begin;    // in the schedule
  uint32_t end;           // of the CTA's part of the schedule
  DecodeSequence sequence;
  ItemSplits splits;

  L4K_HD bool done(const DecodeShape& shape, const DecodeSplitting& splitting) const {
    return b >= shape.batch || item_begin + splitting.split_begin(splits, k) >= end;
  }
  L4K_HD DecodeSplit split() const {
    return {sequence.first_tile + splits.begin(k), splits.begin(k + 1) - splits.begin(k)};
  }
  // Those of the sequence's `tokens` new tokens whose keys lie in the tiles of the split. Tokens without
  // a key come first, and belong to the first split.
  L4K_HD Span new_tokens(int tokens) const {
    const int64_t first = sequence.first_position > 0 ? sequence.first_position : 0;
    const auto before = [&](int split) -> int64_t {
      const int64_t key = int64_t{sequence.first_tile + splits.begin(split)} * kDecodeTile;
      return key < first ? 0 : key - first < tokens ? key - first : tokens;
    };
    return {before(k), before(k + 1)};
  }
  // Of any split of the item.
  L4K_HD uint32_t slot(const DecodeSplitting& splitting, int index) const {
    return splitting.slot(item_begin + splitting.split_begin(splits, index));
  }
  L4K_HD void enter(const DecodeShape& shape, const DecodeSplitting& splitting,
                    const int* lengths) {
    if (b >= shape.batch) return;
    sequence = decode_sequence(shape, lengths[b]);
    splits = splitting.split(sequence.tiles);
  }
  L4K_HD void advance(const DecodeShape& shape, const DecodeSplitting& splitting,
                      const int* lengths) {
    if (++k < splits.count) return;
    k = 0;
    item_begin += splitting.item_length(splits, sequence.tiles);
    if (++block < shape.row_blocks) return;
    block = 0;
    if (++head < shape.kv_heads) return;
    head = 0;
    ++b;
    enter(shape, splitting, lengths);
  }
};

// The first split that begins in a CTA's part [begin, end) of the schedule; sequence b begins at
// `place`, at most `begin`.
L4K_HD DecodeWork first_work(const DecodeShape& shape, const DecodeSplitting& splitting,
                             const int* lengths, int b, uint32_t place, uint32_t begin,
                             uint32_t end) {
  DecodeWork work{};
  work.b = b;
  work.item_begin = place;
  work.end = end;
  work.enter(shape, splitting, lengths);
  while (work.b < shape.batch) {
    const uint32_t length = splitting.item_length(work.splits, work.sequence.tiles);
    const uint32_t all = static_cast<uint32_t>(shape.items()) * length;
    if (begin - work.item_begin < all) {
      const uint32_t item = (begin - work.item_begin) / length;
      work.item_begin += item * length;
      work.head = static_cast<int>(item) / shape.row_blocks;
      work.block = static_cast<int>(item) % shape.row_blocks;
      break;
    }
    work.item_begin += all;
    ++work.b;
    work.enter(shape, splitting, lengths);
  }
  if (work.b >= shape.batch) return work;
  int low = 0, high = work.splits.count;  // the item's first split that begins there or later
  while (low < high) {
    const int middle = (low + high) / 2;
    if (work.item_begin + splitting.split_begin(work.splits, middle) >= begin) high = middle;
    else low = middle + 1;
  }
  work.k = low - 1;
  work.advance(shape, splitting, lengths);
  return work;
}

}  // namespace l4k
