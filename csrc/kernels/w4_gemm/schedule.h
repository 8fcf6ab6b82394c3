// What each CTA does of a product, and in what order. Integers only.
//
// Tiles are dealt out whole, in turn. Those of the last round or two may be split: their K blocks are
// one list, in the order of tiles, that all CTAs share evenly, and a tile that several CTAs hold is
// summed up by the last of them to come. Of two such tiles at most does a CTA hold a part: one that
// begins before its share, and one that ends after it.
#pragma once
#include "tile/shares.h"

namespace l4k {

struct W4Piece {
  int tile, first, end;  // K blocks first ... end - 1 of a tile

  L4K_HD constexpr bool empty() const { return first == end; }
};

// The CTAs that sum a tile, `first` ... `last`. Each has two slots to leave its sums in: the first of a
// tile's leaves them in its second.
struct W4Holders {
  int first, last;

  L4K_HD constexpr int count() const { return last - first + 1; }
  L4K_HD constexpr int slot(int cta) const { return 2 * cta + (cta == first); }
};

struct W4Schedule {
  int tiles, k_blocks, ctas;
  int whole;    // tiles 0 ... whole - 1 are not split
  Shares rest;  // of the K blocks of the others

  // A share has at least this many blocks, and meeting costs about this many.
  static constexpr int kLeastShare = 4, kMeeting = 6;

  static L4K_HD constexpr W4Schedule of(int tiles, int k_blocks, int ctas, bool may_split) {
    const W4Schedule unsplit{tiles, k_blocks, ctas, tiles, {0, 1}};
    const int rounds = tiles / ctas, whole = rounds > 1 ? (rounds - 1) * ctas : 0;
    const int left = tiles - whole, units = left * k_blocks;
    if (!may_split || units < 2 * kLeastShare) return unsplit;
    const int sharing = units / kLeastShare < ctas ? units / kLeastShare : ctas;
    const int split_cost = ceil_div(units, sharing) + kMeeting;
    if (split_cost >= ceil_div(left, ctas) * k_blocks) return unsplit;
    return {tiles, k_blocks, ctas, whole, {units, sharing}};
  }

  L4K_HD constexpr bool split(const W4Piece& piece) const {
    return piece.end - piece.first < k_blocks;
  }
  // Of a tile that is split, and which of the counters is the tile's.
  L4K_HD constexpr W4Holders holders(int tile) const {
    const int unit = (tile - whole) * k_blocks;
    return {rest.owner(unit), rest.owner(unit + k_blocks - 1)};
  }
  L4K_HD constexpr int counter(int tile) const { return tile - whole; }
  // There are no more tiles that may be split.
  static L4K_HD constexpr int most_counters(int ctas) { return 2 * ctas; }
};

// The pieces of one CTA.
struct W4Turn {
  W4Schedule schedule;
  int cta;
  int start, end;  // its share

  static L4K_HD constexpr W4Turn of(const W4Schedule& schedule, int cta) {
    if (cta >= schedule.rest.ctas) return {schedule, cta, 0, 0};
    return {schedule, cta, schedule.rest.first(cta), schedule.rest.first(cta + 1)};
  }

  L4K_HD constexpr W4Piece first() const { return of_tile(cta); }
  // An empty piece comes after the last.
  L4K_HD constexpr W4Piece next(const W4Piece& piece) const {
    if (piece.tile < schedule.whole) return of_tile(piece.tile + schedule.ctas);
    return from((piece.tile - schedule.whole) * schedule.k_blocks + piece.end);
  }

 private:
  L4K_HD constexpr W4Piece of_tile(int tile) const {
    return tile < schedule.whole ? W4Piece{tile, 0, schedule.k_blocks} : from(start);
  }
  // What the share holds of a tile from `unit` on.
  L4K_HD constexpr W4Piece from(int unit) const {
    if (unit >= end) return {schedule.tiles, 0, 0};
    const int tile = unit / schedule.k_blocks, first = unit - tile * schedule.k_blocks;
    const int left = end - unit, most = schedule.k_blocks - first;
    return {schedule.whole + tile, first, first + (left < most ? left : most)};
  }
};

}  // namespace l4k
