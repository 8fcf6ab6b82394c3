// A tile of int4 weights has a place for every code, scale and zero point, and no other.
#include <cmath>
#include <vector>

#include "expect.h"
#include "tile/int4.h"

namespace {

using namespace l4k;

void each_bit_has_one_owner(const Int4Tile& tile) {
  std::vector<int> owners(8 * tile.bytes());
  const auto own = [&](int first, int bits) {
    EXPECT(first >= 0 && first + bits <= 8 * tile.bytes(), "bit " << first << " is outside");
    for (int bit = first; bit < first + bits; ++bit) ++owners[bit];
  };
  for (int row = 0; row < kInt4TileRows; ++row) {
    for (int k = 0; k < kInt4TileK; ++k) {
      const Int4Place place = int4_place(row, k);
      EXPECT(place.word < kInt4CodeWords && place.field < 8, "row " << row << ", k " << k);
      own(32 * place.word + 4 * place.field, 4);
    }
    for (int group = 0; group < tile.groups; ++group) {
      own(8 * tile.scales(group) + 16 * int4_row_slot(row), 16);
      if (tile.zeros) own(8 * (tile.zero_points(group) + int4_row_slot(row)), 8);
    }
  }
  for (int bit = 0; bit < 8 * tile.bytes(); ++bit)
    EXPECT(owners[bit] == 1, "bit " << bit << " of " << tile.words() << " words");
  EXPECT(tile.bytes() % 16 == 0, "a bulk copy takes whole 16 bytes, not " << tile.bytes());
}

// What a lane loads, 16 bytes, is the left operand of m16n8k16 four times: PTX's fragment of A.
void lanes_hold_what_a_product_takes() {
  for (int row = 0; row < kInt4TileRows; ++row)
    for (int k = 0; k < kInt4TileK; ++k) {
      const Int4Place place = int4_place(row, k);
      const int half = place.word / 128, lane = place.word / 4 % 32, step = place.word % 4;
      const int element = place.field % 4 * 2 + place.field / 4;  // a0 ... a7 of the fragment
      EXPECT(row == lane / 4 + element / 2 % 2 * 8, "row " << row << ", k " << k);
      EXPECT(k == 64 * half + 16 * step + lane % 4 * 2 + element % 2 + element / 4 * 8,
             "row " << row << ", k " << k);
    }
}

// Codes under the masks of tile/int4.cuh are bf16 that stand at equal distances, so that one
// multiply-add makes (code - zero) / 64 of them, or a quarter in the row eight below: exact.
void codes_are_linear_as_bf16() {
  const auto bf16 = [](int bits) {  // without sign
    const int exponent = bits >> 7, fraction = bits & 0x7f;
    return exponent == 0 ? std::ldexp(fraction, -133) : std::ldexp(128 + fraction, exponent - 134);
  };
  for (int code = 0; code < 16; ++code)
    for (int zero = 0; zero < 16; ++zero)
      for (int shift : {0, 4}) {
        const double factor = shift == 0 ? 64 : 4;
        const double value = std::ldexp(bf16(code << shift), 127) - zero / factor;
        EXPECT(value * factor == code - zero, code << " - " << zero << " at bit " << shift);
      }
}

// One word, or two bytes of zero points, are what the lanes of row g want.
void factors_of_rows_eight_apart_are_neighbours() {
  for (int row = 0; row < 8; ++row)
    EXPECT(int4_row_slot(row) == 2 * row && int4_row_slot(row + 8) == 2 * row + 1, "row " << row);
}

}  // namespace

int main() {
  int formats = 0;
  for (int words = -1; words < 4096; ++words) {
    const Int4Tile tile = Int4Tile::of_words(words);
    if (tile.groups == 0) continue;
    EXPECT(tile.words() == words, "of " << words << " words");
    each_bit_has_one_owner(tile);
    ++formats;
  }
  EXPECT(formats == 6, formats << " kinds of tile");
  EXPECT(Int4Tile::of_words((int64_t{1} << 32) + 264).groups == 0, "64 bits");
  lanes_hold_what_a_product_takes();
  codes_are_linear_as_bf16();
  factors_of_rows_eight_apart_are_neighbours();
  return 0;
}
