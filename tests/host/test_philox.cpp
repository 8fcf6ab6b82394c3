// The generator against the known answers of Random123 (kat_vectors, philox4x32-10), and float
// order against integer order.
#include <cstring>
#include <limits>

#include "expect.h"
#include "tile/ordered.h"
#include "tile/philox.h"

namespace {

struct Known {
  l4k::PhiloxWords counter;
  l4k::PhiloxKey key;
  l4k::PhiloxWords words;
};

constexpr Known kKnown[] = {
    {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
    {{{~0u, ~0u, ~0u, ~0u}}, {~0u, ~0u}, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
    {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
     {0xa4093822, 0x299f31d0},
     {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
};

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace

int main() {
  for (const Known& known : kKnown) {
    const l4k::PhiloxWords words = l4k::philox(known.counter, known.key);
    for (int i = 0; i < 4; ++i)
      EXPECT(words.x[i] == known.words.x[i], "word " << i << " is " << words.x[i]);
  }
  const float infinity = std::numeric_limits<float>::infinity();
  const float ascending[] = {-infinity, -3e38f, -1.f, -1e-45f, 0.f, 1e-45f, 1.f, 3e38f, infinity};
  for (int i = 0; i < 9; ++i) {
    EXPECT(l4k::ordered_bits(l4k::ordered_key(bits_of(ascending[i]))) == bits_of(ascending[i]), i);
    EXPECT(l4k::ordered_key(bits_of(ascending[i])) > 0, i);
    for (int j = 0; j < i; ++j)
      EXPECT(l4k::ordered_key(bits_of(ascending[j])) < l4k::ordered_key(bits_of(ascending[i])), i);
  }
  return 0;
}
