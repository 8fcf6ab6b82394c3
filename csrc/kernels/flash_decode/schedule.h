// How decoding divides the visible keys of a batch among the CTAs of a grid. Integers only: every
// CTA computes the same schedule from the lengths in device memory, and the host test checks it.
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

constexpr int kDecodeTile = 128;        // keys
constexpr int kDecodeKeyBlock = 16;     // keys that lie in one page, and that one warp multiplies
constexpr int kDecodeRows = 128;        // queries x heads of a work item
constexpr int kDecodeTokens = 16;       // new ones of a sequence, at most
constexpr int kDecodeSplitsPerCta = 4;  // where there are more items than CTAs can share
constexpr int kDecodeSlotsPerCta = 2 * kDecodeSplitsPerCta;

// Keys are counted in 32 bits, to the end of the last key block.
constexpr int64_t kDecodeMaxKeys = (int64_t{1} << 31) - kDecodeKeyBlock;

// Of the keys that a row of the block table addresses, those that a sequence may have.
L4K_HD constexpr int64_t decode_capacity(int64_t addressed) {
  return addressed < kDecodeMaxKeys ? addressed : kDecodeMaxKeys;
}

struct DecodeShape {
  int batch;
  int items;         // of a sequence: KV heads x blocks of rows
  int tokens;        // queries of a sequence
  int chunk;         // 0: none
  int64_t capacity;  // keys that a row of the block table can address
  int grid;          // CTAs
};

// One sequence: the keys that its queries see, and the tiles they lie in. A sequence without keys,
// or with a length that no table holds, has one tile of which it sees nothing.
struct DecodeSequence {
  int64_t first_position;
  Span keys;
  int first_tile, tiles;
  bool valid;
};

L4K_HD constexpr DecodeSequence decode_sequence(const DecodeShape& shape, int length) {
  const bool valid = length >= 0 && length <= shape.capacity;
  const int64_t end = valid ? length : 0, first = end - shape.tokens;
  const Span keys = keys_of_any({first, end}, shape.chunk);
  const int64_t first_tile = keys.first / kDecodeTile;
  const int64_t touched = ceil_div<int64_t>(keys.end, kDecodeTile) - first_tile;
  const int tiles = static_cast<int>(touched > 0 ? touched : 1);
  return {first, keys, static_cast<int>(first_tile), tiles, valid};
}

// What the schedule needs to know of all lengths.
struct DecodeTotals {
  int64_t tiles;  // of all items
  int largest;    // of one item
};

// How items are split: into as few splits as possible, of at most `max_tiles`.
struct DecodeSplitting {
  int max_tiles;
  bool one_wave;  // no more splits than CTAs: split i belongs to CTA i
};

L4K_HD constexpr DecodeSplitting choose_splitting(const DecodeTotals& totals, int64_t items,
                                                  int grid) {
  int64_t tiles = ceil_div<int64_t>(totals.tiles, int64_t{grid} * kDecodeSplitsPerCta);
  bool one_wave = false;
  if (items <= grid) {
    // Either bound keeps the number of splits within the grid; the first is exact for equal
    // lengths, the second good for very different ones.
    int64_t wave = ceil_div<int64_t>(totals.largest, grid / items);
    if (items < grid) {
      const int64_t other = ceil_div<int64_t>(totals.tiles, grid - items);
      wave = other < wave ? other : wave;
    }
    one_wave = wave * grid <= totals.tiles + totals.tiles / 8 || wave == 1;
    if (one_wave) tiles = wave;
  }
  tiles = tiles < totals.largest ? tiles : totals.largest;
  return {static_cast<int>(tiles), one_wave};
}

struct DecodeSplit {
  int first_tile, tiles;  // of the sequence
};

// The splits of a work item: as even as whole tiles allow.
struct ItemSplits {
  int count, quotient, remainder;

  // Tiles of the item before split k.
  L4K_HD constexpr int begin(int k) const { return k * quotient + (k < remainder ? k : remainder); }
};

L4K_HD constexpr ItemSplits split_item(int tiles, const DecodeSplitting& splitting) {
  const int count = ceil_div(tiles, splitting.max_tiles);
  return {count, tiles / count, tiles % count};
}

constexpr int kDecodeMaxGrid = 1024 / kDecodeSplitsPerCta;

// Splits of an item that are combined at once.
L4K_HD constexpr int combine_group_size(int splits) { return splits <= 256 ? 16 : 32; }

struct DecodeSchedule {
  DecodeSplitting splitting;
  int64_t length;

  L4K_HD int64_t begin_of(int cta, int grid) const { return length * cta / grid; }
  L4K_HD int64_t item_length(const ItemSplits& splits, int tiles) const {
    return splitting.one_wave ? splits.count : tiles;
  }
  // Of split k, from the item's begin.
  L4K_HD int64_t split_begin(const ItemSplits& splits, int k) const {
    return splitting.one_wave ? k : splits.begin(k);
  }
  // Where the partial result of the split that begins at `place` goes. No two of one launch share a
  // slot, and all are below kDecodeSlotsPerCta * grid: where an item has several splits, each is at
  // least half of `max_tiles` long.
  L4K_HD int64_t slot(int64_t place) const {
    return splitting.one_wave ? place : 2 * place / splitting.max_tiles;
  }
};

// The split that a CTA is at: the k-th of a sequence's work item.
struct DecodeWork {
  DecodeSequence sequence;
  ItemSplits splits;
  int b, item, k;
  int64_t item_begin;  // in the schedule
  int64_t end;         // of the CTA's part of the schedule

  L4K_HD bool done(const DecodeShape& shape, const DecodeSchedule& schedule) const {
    return b >= shape.batch || item_begin + schedule.split_begin(splits, k) >= end;
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
  L4K_HD int64_t slot(const DecodeSchedule& schedule, int index) const {
    return schedule.slot(item_begin + schedule.split_begin(splits, index));
  }
  L4K_HD void enter(const DecodeShape& shape, const DecodeSchedule& schedule, const int* lengths) {
    if (b >= shape.batch) return;
    sequence = decode_sequence(shape, lengths[b]);
    splits = split_item(sequence.tiles, schedule.splitting);
  }
  L4K_HD void advance(const DecodeShape& shape, const DecodeSchedule& schedule,
                      const int* lengths) {
    if (++k < splits.count) return;
    k = 0;
    item_begin += schedule.item_length(splits, sequence.tiles);
    if (++item < shape.items) return;
    item = 0;
    ++b;
    enter(shape, schedule, lengths);
  }
};

// The first split that begins in the part [begin, end) of the schedule; sequence b begins at
// `place`, at most `begin`.
L4K_HD DecodeWork first_work(const DecodeShape& shape, const DecodeSchedule& schedule,
                             const int* lengths, int b, int64_t place, Span part) {
  DecodeWork work{};
  work.b = b;
  work.item_begin = place;
  work.end = part.end;
  work.enter(shape, schedule, lengths);
  while (work.b < shape.batch) {
    const int64_t length = schedule.item_length(work.splits, work.sequence.tiles);
    if (work.item_begin + shape.items * length > part.first) {
      work.item = static_cast<int>((part.first - work.item_begin) / length);
      work.item_begin += work.item * length;
      break;
    }
    work.item_begin += shape.items * length;
    ++work.b;
    work.enter(shape, schedule, lengths);
  }
  if (work.b >= shape.batch) return work;
  int low = 0, high = work.splits.count;  // the item's first split that begins there or later
  while (low < high) {
    const int middle = (low + high) / 2;
    if (work.item_begin + schedule.split_begin(work.splits, middle) >= part.first) high = middle;
    else low = middle + 1;
  }
  work.k = low - 1;
  work.advance(shape, schedule, lengths);
  return work;
}

}  // namespace l4k
