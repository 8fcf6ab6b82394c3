// Philox4x32-10: four random words from a counter and a key, without state. Compiles under g++.
#pragma once
#include "tile/base.h"

namespace l4k {

struct PhiloxWords {
  uint32_t x[4];
};

struct PhiloxKey {
  uint32_t low, high;
};

L4K_HD constexpr PhiloxWords philox(PhiloxWords c, PhiloxKey key) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.x[0], b = uint64_t{0xCD9E8D57u} * c.x[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.x[1] ^ key.low, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.x[3] ^ key.high, static_cast<uint32_t>(a)}};
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  return c;
}

}  // namespace l4k
