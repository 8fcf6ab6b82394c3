// The swizzles are bijections of their span and free of bank conflicts where kernels rely on it.
#include <set>

#include "expect.h"
#include "tile/swizzle.h"

int main() {
  for (auto swizzle : {l4k::swizzle_32, l4k::swizzle_64, l4k::swizzle_128}) {
    std::set<uint32_t> image;
    for (uint32_t offset = 0; offset < 4096; ++offset) {
      EXPECT(swizzle(swizzle(offset)) == offset, "not an involution at " << offset);
      EXPECT(swizzle(offset) / 1024 == offset / 1024, "leaves its 1 KB atom at " << offset);
      EXPECT(swizzle(offset) % 16 == offset % 16, "splits a 16-byte chunk at " << offset);
      image.insert(swizzle(offset));
    }
    EXPECT(image.size() == 4096, "not a bijection");
  }
  // Eight rows read at one 16-byte column: 8 x 16 bytes must cover all 32 banks once.
  for (uint32_t column = 0; column < 8; ++column) {
    std::set<uint32_t> banks;
    for (uint32_t row = 0; row < 8; ++row)
      for (uint32_t word = 0; word < 4; ++word)
        banks.insert(l4k::bank(l4k::swizzle_128(row * 128 + column * 16 + word * 4)));
    EXPECT(banks.size() == 32, "bank conflict at column " << column);
  }
  return 0;
}
