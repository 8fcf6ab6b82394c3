// Where int4 weights lie in memory that kernels read: tiles of 16 rows by 128 of K, each contiguous,
// ordered [expert][row / 16][K / 128]. Integers only: kernels, the host test and Python agree on it
// (l4kernels/ops/int4_tiles.py has the same map as a table).
//
//   codes    1,024 bytes. Two halves of 64 of K; in each, lane i of a warp owns 16 bytes, whose
//            words are the left operand of four tensor-core products m16n8k16 (or of one warp's
//            rows of wgmma): one 16-byte load is what one lane wants
//   scales   bf16, for each group along K: rows g and g + 8 side by side for g = 0 ... 7
//   zeros    if there are any: a byte each, in the same order
//
// A word holds eight codes. Its fields are four pairs of neighbours along K, one in each half word,
// so that one LOP3 yields the pair:
//
//   bits 0, 16    row g,     k, k + 1          g = lane / 4
//   bits 4, 20    row g + 8, k, k + 1          k = 16 step + 2 (lane % 4)
//   bits 8, 24    row g,     k + 8, k + 9
//   bits 12, 28   row g + 8, k + 8, k + 9
#pragma once
#include "tile/base.h"

namespace l4k {

constexpr int kInt4TileRows = 16, kInt4TileK = 128;
constexpr int kInt4CodeWords = kInt4TileRows * kInt4TileK / 8;
constexpr int kInt4Steps = kInt4TileK / 16;  // products of k16 in a tile

// What a tile holds besides codes.
struct Int4Tile {
  int groups = 1;      // along its 128 of K: of 128, 64 or 32
  bool zeros = false;  // else all are 8

  L4K_HD constexpr int words() const { return kInt4CodeWords + groups * (zeros ? 12 : 8); }
  L4K_HD constexpr int bytes() const { return 4 * words(); }
  // Bytes from the start of the tile to a group's scales and zeros.
  L4K_HD constexpr int scales(int group) const { return 4 * kInt4CodeWords + 32 * group; }
  L4K_HD constexpr int zero_points(int group) const { return scales(groups) + 16 * group; }

  // By the last dimension of a tensor of tiles, which differs for all of them; groups 0 if it is
  // none's.
  static constexpr Int4Tile of_words(int64_t words) {
    for (int groups : {1, 2, 4})
      for (bool zeros : {false, true})
        if (Int4Tile{groups, zeros}.words() == words) return {groups, zeros};
    return {0, false};
  }
};

constexpr int kMaxInt4TileBytes = Int4Tile{4, true}.bytes();

// A code's place: bits 4 * field ... 4 * field + 3 of a word.
struct Int4Place {
  int word, field;
};

// Of rows and scales: g and g + 8 are neighbours.
L4K_HD constexpr int int4_row_slot(int row) { return row % 8 * 2 + row / 8; }

L4K_HD constexpr Int4Place int4_place(int row, int k) {
  const int step = k / 16, column = k % 16;
  const int lane = row % 8 * 4 + column % 8 / 2;
  const int pair = column / 8 * 2 + row / 8;
  return {step / 4 * 128 + lane * 4 + step % 4, pair + column % 2 * 4};
}

}  // namespace l4k
