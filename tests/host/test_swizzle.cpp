// The swizzle is a bijection of its span and free of bank conflicts where kernels rely on it.
#include <set>

#include "expect.h"
#include "tile/swizzle.h"

// Of rows of `span` bytes.
void check(uint32_t span) {
  std::set<uint32_t> image;
  for (uint32_t offset = 0; offset < 4096; ++offset) {
    const uint32_t moved = l4k::swizzle(offset, span);
    EXPECT(l4k::swizzle(moved, span) == offset, "not an involution at " << offset);
    EXPECT(moved / span == offset / span, "leaves its row at " << offset);
    EXPECT(moved / 1024 == offset / 1024, "leaves its 1 KB atom at " << offset);
    EXPECT(moved % 16 == offset % 16, "splits a 16-byte chunk at " << offset);
    image.insert(moved);
  }
  EXPECT(image.size() == 4096, "not a bijection");
  // Eight rows read at one 16-byte column: 8 x 16 bytes must cover all 32 banks once.
  for (uint32_t column = 0; column < span / 16; ++column) {
    std::set<uint32_t> banks;
    for (uint32_t row = 0; row < 8; ++row)
      for (uint32_t word = 0; word < 4; ++word)
        banks.insert(l4k::bank(l4k::swizzle(row * span + column * 16 + word * 4, span)));
    EXPECT(banks.size() == 32, "bank conflict at column " << column);
  }
}

int main() {
  for (uint32_t span : {128, 64, 32}) check(span);
  for (uint32_t offset = 0; offset < 4096; ++offset)
    EXPECT(l4k::swizzle_128(offset) == l4k::swizzle(offset, 128), "two meanings at " << offset);
  return 0;
}
