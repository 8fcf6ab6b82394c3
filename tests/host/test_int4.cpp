// The tiles of int4 weights: every code, scale and zero point has a place of its own, a word's pairs
// are the registers that a tensor-core product wants of a lane, and a tile's length names its format.
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "expect.h"
#include "tile/int4.h"

namespace {

using l4k::Int4Place;
using l4k::Int4Tile;
using l4k::kInt4CodeWords;
using l4k::kInt4TileK;
using l4k::kInt4TileRows;

constexpr int kGroups[] = {1, 2, 4};

void every_code_has_a_field_of_its_own() {
  std::set<std::pair<int, int>> taken;
  for (int row = 0; row < kInt4TileRows; ++row)
    for (int k = 0; k < kInt4TileK; ++k) {
      const Int4Place at = l4k::int4_place(row, k);
      EXPECT(at.word >= 0 && at.word < kInt4CodeWords && at.field >= 0 && at.field < 8, row << k);
      EXPECT(taken.insert({at.word, at.field}).second, "twice: " << row << ", " << k);
    }
  EXPECT(taken.size() == size_t{kInt4CodeWords} * 8, taken.size());
}

// m16n8k16 wants of lane 4 g + c, in registers 0 to 3, two neighbours along k each: row g, k 2c; row
// g + 8; row g, k 2c + 8; row g + 8. A register is a pair of fields that one mask takes: i and i + 4.
void a_word_is_the_left_operand_of_a_lane() {
  for (int step = 0; step < l4k::kInt4Steps; ++step)
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half) {
          const int row = lane / 4 + 8 * (i % 2),
                    k = 16 * step + 2 * (lane % 4) + 8 * (i / 2) + half;
          const Int4Place at = l4k::int4_place(row, k);
          // Four steps are 16 bytes of a lane, and a warp's 16 bytes are 512 in a row.
          EXPECT(at.word == step / 4 * 128 + lane * 4 + step % 4,
                 "step " << step << " lane " << lane);
          EXPECT(at.field == i + 4 * half, "register " << i << " half " << half);
        }
}

// Codes under the masks of tile/int4.cuh are bf16 that stand at equal distances.
void codes_are_linear_as_bf16() {
  const auto bf16 = [](int bits) {  // without sign
    const int exponent = bits >> 7, fraction = bits & 0x7f;
    return exponent == 0 ? std::ldexp(fraction, -133) : std::ldexp(128 + fraction, exponent - 134);
  };
  for (int code = 0; code < 16; ++code)
    for (int zero = 0; zero < 16; ++zero)
      for (int shift : {0, 4}) {
        const double factor = shift == 0 ? 64 : 4;
        const double sum = std::ldexp(bf16(code << shift), 127) - zero / factor;
        EXPECT(sum * factor == code - zero, code << " - " << zero << " at bit " << shift);
        // Exact in bf16: a sign and four bits.
        EXPECT(std::fabs(code - zero) < 16, code);
      }
}

void scales_and_zero_points_follow_the_codes() {
  for (int groups : kGroups)
    for (bool zeros : {false, true}) {
      const Int4Tile tile{groups, zeros};
      std::vector<int> owners(tile.bytes(), 0);
      for (int i = 0; i < 4 * kInt4CodeWords; ++i) ++owners[i];
      std::set<int> slots;
      for (int row = 0; row < kInt4TileRows; ++row) {
        const int slot = l4k::int4_row_slot(row);
        EXPECT(slots.insert(slot).second && slot / 2 == row % 8, "row " << row);
        for (int group = 0; group < groups; ++group) {
          ++owners[tile.scales(group) + 2 * slot];
          ++owners[tile.scales(group) + 2 * slot + 1];
          if (zeros) ++owners[tile.zero_points(group) + slot];
        }
      }
      for (int i = 0; i < tile.bytes(); ++i)
        EXPECT(owners[i] == 1, "byte " << i << ": " << owners[i]);
      EXPECT(tile.bytes() % 16 == 0, "a bulk copy takes multiples of 16 bytes: " << tile.bytes());
    }
}

void a_length_names_a_format_or_none() {
  std::set<int> lengths;
  for (int groups : kGroups)
    for (bool zeros : {false, true}) {
      const Int4Tile tile{groups, zeros}, found = Int4Tile::of_words(tile.words());
      EXPECT(found.groups == groups && found.zeros == zeros, tile.words());
      lengths.insert(tile.words());
    }
  EXPECT((lengths == std::set<int>{264, 268, 272, 280, 288, 304}), "lengths of a tile");
  for (int64_t words = -2; words < 1000; ++words)
    EXPECT((Int4Tile::of_words(words).groups != 0) == (lengths.count(words) == 1), words);
  EXPECT(Int4Tile::of_words((int64_t{1} << 32) + 264).groups == 0, "64 bits");
}

}  // namespace

int main() {
  every_code_has_a_field_of_its_own();
  a_word_is_the_left_operand_of_a_lane();
  codes_are_linear_as_bf16();
  scales_and_zero_points_follow_the_codes();
  a_length_names_a_format_or_none();
}
