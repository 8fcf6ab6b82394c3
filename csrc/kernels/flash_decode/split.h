// How decoding divides the visible keys of a batch among the CTAs of a grid. Integers only: every
// CTA computes the same plan from the lengths in device memory, and the host test checks it.
//
//   item    the rows of one sequence and KV head (at most kDecodeRows of them): `tiles` key tiles
//   piece   consecutive tiles of an item, the work of one CTA at a time; an item of one piece
//           writes its result, the others leave partial results that the last one adds up
//
// How an item is cut depends on its tiles and on one number for the whole batch, never on its place
// in it: equal rows give equal bits anywhere in a batch. Where few items can share the grid well
// there is one wave, and a CTA adds up and leaves its result once; otherwise there are about
// kDecodePiecesPerCta pieces for each CTA.
//
// Pieces are dealt out along a line: CTA c takes those that begin in [c, c + 1) of `grid` equal
// parts. An item covers as much of the line as it has tiles, or pieces if there is one wave.
//
// Partial results are added up in two levels: groups of decode_fan() pieces, then the groups. A
// warp has a lane for each, so neither is more than 32.
#pragma once
#include "tile/mask.h"

namespace l4k {

constexpr int kDecodeTile = 128;        // keys
constexpr int kDecodeGranule = 16;      // keys that lie in one page, and that one warp multiplies
constexpr int kDecodeRows = 128;        // queries x heads of an item
constexpr int kDecodePiecesPerCta = 4;  // where there are more items than CTAs can share
constexpr int kDecodeSlotsPerCta = 2 * kDecodePiecesPerCta;

// Keys are counted in 32 bits, to the end of the last granule.
constexpr int64_t kDecodeMaxKeys = (int64_t{1} << 31) - kDecodeGranule;

// Of the keys that a row of the block table addresses, those that a sequence may have.
L4K_HD constexpr int64_t decode_capacity(int64_t addressed) {
  return addressed < kDecodeMaxKeys ? addressed : kDecodeMaxKeys;
}

struct DecodeShape {
  int batch;
  int heads;         // items of a sequence: KV heads x blocks of rows
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

// What the plan needs to know of all lengths.
struct DecodeTotals {
  int64_t tiles;  // of all items
  int largest;    // of one item
};

struct DecodeSplit {
  int size;       // tiles; an item is cut into as few pieces of at most so many as possible
  bool one_wave;  // no more pieces than CTAs: piece i belongs to CTA i
};

L4K_HD constexpr DecodeSplit decode_split(const DecodeTotals& totals, int64_t items, int grid) {
  int64_t size = ceil_div<int64_t>(totals.tiles, int64_t{grid} * kDecodePiecesPerCta);
  bool one_wave = false;
  if (items <= grid) {
    // Either bound keeps the sum of ceil(tiles / size) within the grid; the first is exact for
    // equal lengths, the second good for very different ones.
    int64_t wave = ceil_div<int64_t>(totals.largest, grid / items);
    if (items < grid) {
      const int64_t other = ceil_div<int64_t>(totals.tiles, grid - items);
      wave = other < wave ? other : wave;
    }
    one_wave = wave * grid <= totals.tiles + totals.tiles / 8 || wave == 1;
    if (one_wave) size = wave;
  }
  size = size < totals.largest ? size : totals.largest;
  return {static_cast<int>(size), one_wave};
}

struct Piece {
  int first_tile, tiles;  // of the sequence
};

// The pieces of an item: as even as whole tiles allow.
struct DecodeCut {
  int pieces, quotient, remainder;

  // Tiles of the item before piece k.
  L4K_HD constexpr int begin(int k) const { return k * quotient + (k < remainder ? k : remainder); }
};

L4K_HD constexpr DecodeCut decode_cut(int tiles, const DecodeSplit& split) {
  const int pieces = ceil_div(tiles, split.size);
  return {pieces, tiles / pieces, tiles % pieces};
}

constexpr int kDecodeMaxGrid = 1024 / kDecodePiecesPerCta;

L4K_HD constexpr int decode_fan(int pieces) { return pieces <= 256 ? 16 : 32; }

struct DecodeLine {
  DecodeSplit split;
  int64_t length;

  L4K_HD int64_t begin_of(int cta, int grid) const { return length * cta / grid; }
  L4K_HD int64_t item_length(const DecodeCut& cut, int tiles) const {
    return split.one_wave ? cut.pieces : tiles;
  }
  L4K_HD int64_t piece_begin(const DecodeCut& cut, int k) const {
    return split.one_wave ? k : cut.begin(k);
  }
  // Where a partial result goes; no two of one launch share a slot, and all are below
  // kDecodeSlotsPerCta * grid: pieces of an item that is cut are at least half of `size` long.
  L4K_HD int64_t slot(int64_t place) const {
    return split.one_wave ? place : 2 * place / split.size;
  }
};

// Walks the pieces of one CTA. `item` counts sequences x heads.
struct DecodeWalk {
  DecodeSequence sequence;
  DecodeCut cut;
  int b, head, k;
  int64_t item_begin;  // on the line
  int64_t end;         // of the CTA's part of the line

  L4K_HD bool done(const DecodeShape& shape, const DecodeLine& line) const {
    return b >= shape.batch || item_begin + line.piece_begin(cut, k) >= end;
  }
  L4K_HD Piece piece() const {
    return {sequence.first_tile + cut.begin(k), cut.begin(k + 1) - cut.begin(k)};
  }
  L4K_HD int64_t slot(const DecodeLine& line, int piece) const {
    return line.slot(item_begin + line.piece_begin(cut, piece));
  }
  L4K_HD void enter(const DecodeShape& shape, const DecodeLine& line, const int* lengths) {
    if (b >= shape.batch) return;
    sequence = decode_sequence(shape, lengths[b]);
    cut = decode_cut(sequence.tiles, line.split);
  }
  L4K_HD void advance(const DecodeShape& shape, const DecodeLine& line, const int* lengths) {
    if (++k < cut.pieces) return;
    k = 0;
    item_begin += line.item_length(cut, sequence.tiles);
    if (++head < shape.heads) return;
    head = 0;
    ++b;
    enter(shape, line, lengths);
  }
};

// The first piece at or behind `begin` on the line; sequence b begins at `place`, at most `begin`.
L4K_HD DecodeWalk decode_walk(const DecodeShape& shape, const DecodeLine& line, const int* lengths,
                              int b, int64_t place, int64_t begin, int64_t end) {
  DecodeWalk walk{};
  walk.b = b;
  walk.item_begin = place;
  walk.end = end;
  walk.enter(shape, line, lengths);
  while (walk.b < shape.batch) {
    const int64_t item = line.item_length(walk.cut, walk.sequence.tiles);
    if (walk.item_begin + shape.heads * item > begin) {
      walk.head = static_cast<int>((begin - walk.item_begin) / item);
      walk.item_begin += walk.head * item;
      break;
    }
    walk.item_begin += shape.heads * item;
    ++walk.b;
    walk.enter(shape, line, lengths);
  }
  if (walk.b >= shape.batch) return walk;
  int low = 0, high = walk.cut.pieces;  // the first piece of the item that begins there or behind
  while (low < high) {
    const int middle = (low + high) / 2;
    if (walk.item_begin + line.piece_begin(walk.cut, middle) >= begin) high = middle;
    else low = middle + 1;
  }
  walk.k = low - 1;
  walk.advance(shape, line, lengths);
  return walk;
}

}  // namespace l4k
