#include "tensor/packed.h"

#include <algorithm>

namespace l4k::emu {

int64_t extend_from(uint32_t v, uint32_t bits, bool is_signed) {
  uint64_t low = uint64_t{v} & ((uint64_t{1} << bits) - 1);
  return is_signed && low >> (bits - 1) ? static_cast<int64_t>(low) - (int64_t{1} << bits)
                                        : static_cast<int64_t>(low);
}
int64_t clamp_to(int64_t v, uint32_t bits, bool is_signed) {
  int64_t low = is_signed ? -(int64_t{1} << (bits - 1)) : 0,
          high = (int64_t{1} << (bits - is_signed)) - 1;
  return v < low ? low : v > high ? high : v;
}

uint32_t simd_value(const Simd& m, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t packed = 0, sum = c;
  for (uint32_t at = 0; at < 32; at += m.bits) {
    int64_t x = extend_from(a >> at, m.bits, m.a_signed),
            y = extend_from(b >> at, m.bits, m.b_signed), v = 0;
    switch (m.op) {
      case Simd::add:
        v = x + y;
        break;
      case Simd::sub:
        v = x - y;
        break;
      case Simd::min:
        v = std::min(x, y);
        break;
      case Simd::max:
        v = std::max(x, y);
        break;
      case Simd::absdiff:
        v = x > y ? x - y : y - x;
        break;
    }
    if (m.relu && v < 0) v = 0;
    if (m.saturates) v = clamp_to(v, m.bits, m.d_signed);
    packed |= (static_cast<uint32_t>(v) & ((1u << m.bits) - 1)) << at;
    sum += static_cast<uint32_t>(v);
  }
  return m.sums ? sum : packed;
}
}  // namespace l4k::emu
