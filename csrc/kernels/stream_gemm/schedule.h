// Which weights a CTA multiplies, and whose sums make a result. Integers only.
//
//   unit   16 rows of the weight by one block of K: what a warp multiplies at a time
//   item   rows of A that belong to one expert, at most as many as a tensor-core product has
//          columns; or, where they do not fit in shared memory, a slice of them along K
//   run    units of one item and one row tile that lie in one share
//
// Units are numbered by item, row tile and block, in the order of memory, and shared out evenly. The
// sums of a row tile that is more than one run (its units lie in several shares, or its rows are
// sliced) meet in a workspace, where each of its runs has a slot of its own.
#pragma once
#include "tile/base.h"
#include "tile/shares.h"

namespace l4k {

// What the weights are: int4 in tiles (tile/int4.h), or rows of bf16 or e4m3.
enum class StreamFormat : int { kInt4, kBf16, kFp8 };

// With as many, two CTAs with two rows of Llama 4's hidden size fit one SM.
constexpr int kStreamMaxItems = 56;
// A share is not smaller than that: sums that meet cost more than a few units.
constexpr int kStreamMinUnits = 8;
// Rows of A take this much shared memory of a CTA at most, which with the largest ring is all of an
// SM's; more rows are sliced along K. The few rows of a single user leave room for the next kernel.
constexpr int kStreamMaxRowBytes = 96 * 1024;

// A unit's K, and the bytes of a row of A in it.
struct StreamUnit {
  int k, row_bytes;
};
L4K_HD constexpr StreamUnit stream_unit(StreamFormat format) {
  if (format == StreamFormat::kInt4) return {128, 256};
  return {format == StreamFormat::kBf16 ? 64 : 128, 128};
}

struct StreamItem {
  int expert;
  int row, rows;            // of A
  int first_block, blocks;  // along K
  int slice, slices;        // the items of the other slices are its neighbours
  int end_unit;             // a running total
  int sliced_tiles;         // row tiles of sliced items before this one
};

struct StreamRun {
  int item, tile;
  int begin, end;  // units
};

// What a row of A needs of shared memory: 16 bytes more than its K blocks, so that eight rows lie in
// different banks.
struct StreamRows {
  int capacity;     // bytes of shared memory for rows of one item
  int k_blocks;     // along K
  int block_bytes;  // of a row of A

  static L4K_HD constexpr int pitch(int blocks, int block_bytes) {
    return blocks * block_bytes + 16;
  }

  // Room for `rows` rows, and for a block of K of the most that an item may have.
  static L4K_HD constexpr StreamRows of(int rows, int most_rows, int k_blocks, int block_bytes) {
    const int most = kStreamMaxRowBytes / block_bytes;  // of K, for one row
    const int all = rows * pitch(k_blocks < most ? k_blocks : most, block_bytes);
    const int least = most_rows * pitch(1, block_bytes), wanted = all > least ? all : least;
    return {wanted < kStreamMaxRowBytes ? wanted : kStreamMaxRowBytes, k_blocks, block_bytes};
  }

  // Blocks of K for which so many rows have room, at least 1 if the launcher allowed the problem.
  L4K_HD constexpr int room(int rows) const { return (capacity / rows - 16) / block_bytes; }
  L4K_HD constexpr int slices(int rows) const { return ceil_div(k_blocks, room(rows)); }
  L4K_HD constexpr int first_block(int slice, int slices) const {
    return k_blocks * slice / slices;
  }

  // The most items, or sliced ones, that `m` rows make, however many of them an expert has.
  L4K_HD constexpr int64_t most_items(int m, int tokens, bool sliced) const {
    int64_t most = 0;
    for (int rows = 1; rows <= tokens && rows <= m; ++rows) {
      const int count = slices(rows);
      const int64_t items = int64_t{m} * count / rows;  // if all have as many as these
      if ((count > 1 || !sliced) && items > most) most = items;
    }
    return most;
  }
};

// Of a product: tokens of an item, how its rows lie, and whether the list has room for its items. With
// experts a token has a row of a routed one and a row of the shared one: room for half of the rows, so
// that a single user's two leave room for the next kernel.
L4K_HD constexpr int stream_tokens(int m) { return m <= 8 ? 8 : 16; }
L4K_HD constexpr StreamRows stream_rows(StreamFormat format, int m, int k, int experts) {
  const StreamUnit unit = stream_unit(format);
  const int tokens = stream_tokens(m), rows = experts == 1 ? m : ceil_div(m, 2);
  return StreamRows::of(rows < tokens ? rows : tokens, m < tokens ? m : tokens, ceil_div(k, unit.k),
                        unit.row_bytes);
}
L4K_HD constexpr bool can_stream(StreamFormat format, int m, int k, int experts) {
  if (m == 0) return true;
  const StreamRows rows = stream_rows(format, m, k, experts);
  return rows.most_items(m, stream_tokens(m), false) <= kStreamMaxItems;
}

struct StreamSchedule {
  const StreamItem* items;
  int num_items;
  int row_tiles;  // of the weight of one expert
  Shares shares;

  // Of `units` on a grid of `ctas`.
  static L4K_HD constexpr Shares shares_of(int units, int ctas) {
    const int most = units / kStreamMinUnits;
    return {units, most < 1 ? 1 : most < ctas ? most : ctas};
  }

  L4K_HD int first_unit(int item) const { return item == 0 ? 0 : items[item - 1].end_unit; }
  L4K_HD int first_unit(int item, int tile) const {
    return first_unit(item) + tile * items[item].blocks;
  }

  // The first run of a share that is not empty.
  L4K_HD StreamRun first(int cta) const {
    const int unit = shares.first(cta);
    int item = 0;
    while (items[item].end_unit <= unit) ++item;
    const int tile = (unit - first_unit(item)) / items[item].blocks;
    return run(item, tile, unit, shares.first(cta + 1));
  }

  // The run after it, if the share does not end with it.
  L4K_HD StreamRun next(const StreamRun& r, int share_end) const {
    const bool same = r.tile + 1 < row_tiles;
    const int item = same ? r.item : r.item + 1;
    return run(item, same ? r.tile + 1 : 0, r.end, share_end);
  }

  // Whether the run is all of its row tile's units.
  L4K_HD bool whole(const StreamRun& r) const {
    return items[r.item].slices == 1 && r.end - r.begin == items[r.item].blocks;
  }

  // Calls `visit(slot)` for each run of the row tile, from the end of K to its start.
  template <typename Visit>
  L4K_HD void for_each_run(int item, int tile, Visit visit) const {
    const int first_item = item - items[item].slice;
    for (int i = first_item + items[item].slices - 1; i >= first_item; --i) {
      const int begin = first_unit(i, tile), end = begin + items[i].blocks;
      for (int cta = shares.owner(end - 1); cta >= shares.owner(begin); --cta)
        visit(slot(i, tile, cta));
    }
  }

  // A number of its own for each run that is not whole: numbers grow along the units. A share has at
  // most two such runs besides those of sliced items.
  L4K_HD int slot(int item, int tile, int cta) const {
    const StreamItem& i = items[item];
    const bool sliced = i.slices > 1;
    const bool first = !sliced && first_unit(item, tile) <= shares.first(cta);
    return i.sliced_tiles + (sliced ? tile : 0) + 3 * cta + (first ? 0 : 1);
  }
  static L4K_HD constexpr int slots(int sliced_tiles, int ctas) { return sliced_tiles + 3 * ctas; }

 private:
  L4K_HD StreamRun run(int item, int tile, int begin, int share_end) const {
    const int end = first_unit(item, tile) + items[item].blocks;
    return {item, tile, begin, end < share_end ? end : share_end};
  }
};

}  // namespace l4k
