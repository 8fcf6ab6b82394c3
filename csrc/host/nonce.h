// A number that no other launch of this or another process on the device is likely to have.
#pragma once
#include <atomic>
#include <cstdint>
#include <random>

namespace l4k {

// 48 bits, never 0. Counters in uninitialised memory are valid only with it.
inline uint64_t launch_nonce() {
  static std::random_device seed;
  static std::atomic<uint64_t> next = seed() | uint64_t{seed()} << 32;
  uint64_t z = next.fetch_add(0x9e3779b97f4a7c15);  // splitmix64
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) >> 16 | 1;
}

}  // namespace l4k
