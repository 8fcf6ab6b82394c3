// Swizzles are bijections of their span and free of bank conflicts where kernels rely on it.
#include <set>

#include "expect.h"
#include "tile/swizzle.h"

namespace {

template <uint32_t kSpan>
void check() {
  std::set<uint32_t> image;
  for (uint32_t offset = 0; offset < 4096; ++offset) {
    const uint32_t moved = l4k::swizzle<kSpan>(offset);
    EXPECT(l4k::swizzle<kSpan>(moved) == offset, "not an involution at " << offset);
    EXPECT(moved / kSpan == offset / kSpan, "leaves its row at " << offset);
    EXPECT(moved % 16 == offset % 16, "splits a 16-byte chunk at " << offset);
    image.insert(moved);
  }
  EXPECT(image.size() == 4096, "not a bijection");
  // Eight rows read at one 16-byte column: 8 x 16 bytes must cover all 32 banks once.
  for (uint32_t column = 0; column < kSpan / 16; ++column) {
    std::set<uint32_t> banks;
    for (uint32_t row = 0; row < 8; ++row)
      for (uint32_t word = 0; word < 4; ++word)
        banks.insert(l4k::bank(l4k::swizzle<kSpan>(row * kSpan + column * 16 + word * 4)));
    EXPECT(banks.size() == 32, "bank conflict at column " << column);
  }
}

}  // namespace

int main() {
  check<32>();
  check<64>();
  check<128>();
  return 0;
}
