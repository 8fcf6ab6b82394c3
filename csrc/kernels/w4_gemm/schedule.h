// What each CTA does of a product, and in what order. Integers only.
//
// Tiles are dealt out whole, in turn. Those of the last round or two may be split: their K blocks are
// one list, in the order of tiles, that all CTAs share evenly, and a tile that several CTAs hold is
// summed up by the last of them to come. A CTA has at most two such tiles: the first and the last of
// its share.
#pragma once
#include "tile/shares.h"

namespace l4k {

struct W4Piece {
  int tile, first, end;  // K blocks first ... end - 1 of a tile

  L4K_HD constexpr bool empty() const { return first == end; }
};

// The CTAs that sum a tile: first ... last.
struct W4Holders {
  int first, last;

  L4K_HD constexpr int count() const { return last - first + 1; }
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

  L4K_HD constexpr W4Piece first(int cta) const {
    return cta < whole ? W4Piece{cta, 0, k_blocks} : shared(cta, 0);
  }
  // An empty piece comes after the last.
  L4K_HD constexpr W4Piece next(int cta, const W4Piece& piece) const {
    if (piece.tile >= whole) return shared(cta, (piece.tile - whole) * k_blocks + piece.end);
    const int tile = piece.tile + ctas;
    return tile < whole ? W4Piece{tile, 0, k_blocks} : shared(cta, 0);
  }

  L4K_HD constexpr bool split(const W4Piece& piece) const {
    return piece.end - piece.first < k_blocks;
  }
  // Of a tile that is split.
  L4K_HD constexpr W4Holders holders(int tile) const {
    const int unit = (tile - whole) * k_blocks;
    return {rest.owner(unit), rest.owner(unit + k_blocks - 1)};
  }
  // Where a CTA keeps its sums of a tile: it has two slots.
  L4K_HD constexpr int slot(int cta, int tile) const {
    return 2 * cta + (rest.first(cta) / k_blocks + whole != tile);
  }
  L4K_HD constexpr int counter(int tile) const { return tile - whole; }

 private:
  // What the CTA's share holds of a tile, from `unit` on or from its start.
  L4K_HD constexpr W4Piece shared(int cta, int unit) const {
    if (cta >= rest.ctas) return {tiles, 0, 0};
    const int start = rest.first(cta), end = rest.first(cta + 1);
    if (unit < start) unit = start;
    if (unit >= end) return {tiles, 0, 0};
    const int tile = unit / k_blocks, first = unit % k_blocks, left = end - unit;
    return {whole + tile, first, left < k_blocks - first ? first + left : k_blocks};
  }
};

}  // namespace l4k
