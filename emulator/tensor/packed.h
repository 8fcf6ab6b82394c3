// Integers of a few bits, alone or packed into 32.
#pragma once

#include <cstdint>

namespace l4k::emu {

int64_t extend_from(uint32_t v, uint32_t bits, bool is_signed);  // the value of its low bits
int64_t clamp_to(int64_t v, uint32_t bits, bool is_signed);

// prmt: a selector of nibbles, or one of the modes that its last two bits choose from.
enum class Permute : uint8_t { selector, f4e, b4e, rc8, ecl, ecr, rc16 };
inline uint32_t prmt_value(uint32_t a, uint32_t b, uint32_t c, Permute mode) {
  uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t n = c & 3, d = 0;
  static constexpr uint8_t kTables[7][4][4] = {
      {},
      {{0, 1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4, 5}, {3, 4, 5, 6}},   // f4e
      {{0, 7, 6, 5}, {1, 0, 7, 6}, {2, 1, 0, 7}, {3, 2, 1, 0}},   // b4e
      {{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}},   // rc8
      {{0, 1, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {3, 3, 3, 3}},   // ecl
      {{0, 0, 0, 0}, {0, 1, 1, 1}, {0, 1, 2, 2}, {0, 1, 2, 3}},   // ecr
      {{0, 1, 0, 1}, {2, 3, 2, 3}, {0, 1, 0, 1}, {2, 3, 2, 3}}};  // rc16
  for (uint32_t i = 0; i < 4; ++i) {
    uint32_t select =
        mode == Permute::selector ? c >> (4 * i) & 15 : kTables[static_cast<uint32_t>(mode)][n][i];
    uint32_t byte = uint32_t(bytes >> (8 * (select & 7))) & 0xff;
    if (select & 8) byte = byte & 0x80 ? 0xff : 0;
    d |= byte << (8 * i);
  }
  return d;
}

// add, min and max of .u16x2, and the video instructions on two or four integers.
struct Simd {
  enum Op : uint8_t { add, sub, min, max, absdiff } op;
  uint8_t bits;
  bool a_signed, b_signed, d_signed, saturates, relu;
  bool sums;  // video's .add: the sum of the results and of the third operand
};
uint32_t simd_value(const Simd& m, uint32_t a, uint32_t b, uint32_t c);

}  // namespace l4k::emu
