// Tests are plain programs: check(...) prints what differs and counts it; finish() is main's
// result.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>

namespace l4k::emu::test {

inline long g_checks = 0, g_failures = 0;

[[gnu::format(printf, 2, 3)]] inline bool check(bool ok, const char* format, ...) {
  ++g_checks;
  if (ok) return true;
  if (++g_failures <= 20) {
    va_list args;
    va_start(args, format);
    std::fputs("FAIL ", stdout);
    std::vprintf(format, args);
    std::fputc('\n', stdout);
    va_end(args);
  }
  return false;
}

inline int finish(const char* name) {
  std::printf("%s: %ld checks, %ld failures\n", name, g_checks, g_failures);
  return g_failures || !g_checks;
}

// Deterministic pseudo-random numbers, the same on every machine.
struct Rng {
  uint64_t state;
  explicit Rng(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint32_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>(state * 0x2545f4914f6cdd1dull >> 32);
  }
  uint32_t below(uint32_t n) { return next() % n; }
  double unit() { return next() * 0x1p-32; }  // [0, 1)
  double between(double a, double b) { return a + (b - a) * unit(); }
};

}  // namespace l4k::emu::test
