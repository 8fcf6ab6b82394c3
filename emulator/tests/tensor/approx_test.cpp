// The approximations stay inside the documented errors, differ from exact somewhere, and are pure.
#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "tensor/numeric.h"

using namespace l4k::emu;
using test::check;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kPi = 3.14159265358979323846;

long double exact(Approx op, float x) {
  long double v = x;
  switch (op) {
    case Approx::ex2:
      return std::exp2(v);
    case Approx::lg2:
      return std::log2(v);
    case Approx::rcp:
      return 1 / v;
    case Approx::rsqrt:
      return 1 / std::sqrt(v);
    case Approx::sqrt:
      return std::sqrt(v);
    case Approx::sin:
      return std::sin(v);
    case Approx::cos:
      return std::cos(v);
    case Approx::tanh:
      return std::tanh(v);
  }
  __builtin_unreachable();
}

// Spacing of floats at v; subnormals included.
double ulp(long double v) {
  int e = v == 0 ? -126 : std::max(std::ilogb(v), -126);
  return std::ldexp(1.0, e - 23);
}

double allowed(Approx op, float x, long double v) {
  double magnitude = std::abs(static_cast<double>(v));
  double half = ulp(v) / 2;  // for results so small that a relative error means nothing
  switch (op) {
    case Approx::ex2:
      return 2 * ulp(v);
    case Approx::rcp:
      return ulp(v);
    case Approx::sqrt:
      return magnitude * 0x1p-23;
    case Approx::rsqrt:
      return magnitude * std::exp2(-22.9);
    case Approx::lg2:
      return x > 0.5f && x < 2.f ? 0x1p-22 : magnitude * 0x1p-22;
    case Approx::sin:
    case Approx::cos:
      return std::abs(x) <= 2 * kPi ? std::exp2(-20.5) : std::exp2(-14.7);
    case Approx::tanh:
      return std::max(magnitude * 0x1p-11, half);
  }
  __builtin_unreachable();
}

float operand(Approx op, test::Rng& rng) {
  switch (op) {
    case Approx::ex2:
      return static_cast<float>(rng.between(-149.9, 127.9));
    case Approx::sin:
    case Approx::cos:
      return static_cast<float>(rng.next() & 1 ? rng.between(-2 * kPi, 2 * kPi)
                                               : rng.between(-100 * kPi, 100 * kPi));
    case Approx::tanh:
      return from_bits(rng.next() & 0xbfffffffu);
    case Approx::rcp: {
      // Results that overflow or are subnormal included.
      float x = from_bits(rng.next());
      return std::isfinite(x) && std::abs(x) > 0x1.1p-128f ? x : 3.f;
    }
    case Approx::lg2:
      if (rng.next() & 1) return static_cast<float>(rng.between(0.4, 2.1));
      [[fallthrough]];
    default: {
      float x = from_bits(rng.next() & 0x7fffffffu);
      return std::isfinite(x) && x > 0 ? x : 3.f;
    }
  }
}

void bounds() {
  for (int i = 0; i < 8; ++i) {
    auto op = static_cast<Approx>(i);
    long moved = 0;
    for (uint64_t seed : {0ull, 1ull, 2ull, 0x123456789abcull}) {
      test::Rng rng(10 + i);
      double worst = 0;
      for (int n = 0; n < 100000; ++n) {
        float x = operand(op, rng);
        long double v = exact(op, x);
        float got = approx(op, x, false, seed);
        double error = std::abs(static_cast<double>(got - v)), limit = allowed(op, x, v);
        check(error <= limit, "op %d of %a seed %llx: %a, exact %a", i, x, (unsigned long long)seed,
              got, static_cast<double>(v));
        if (seed == 0) {
          check(error <= ulp(v) * (0.5 + 1e-6), "op %d of %a: seed 0 is correctly rounded", i, x);
        }
        worst = std::max(worst, error / limit);
        moved += seed && got != approx(op, x, false, 0);
      }
      // The documented error is used, not a sliver of it.
      if (seed)
        check(worst > 0.9, "op %d seed %llx: worst is %.3f of the limit", i,
              (unsigned long long)seed, worst);
    }
    check(moved > 30000, "op %d: only %ld results moved", i, moved);
  }
}

void specials() {
  for (uint64_t seed : {0ull, 7ull, 8ull, 9ull})
    for (bool ftz : {false, true}) {
      auto expect = [&](Approx op, float x, float want) {
        float got = approx(op, x, ftz, seed);
        check(bits(got) == bits(want), "op %d of %a: expected %a, got %a", int(op), x, want, got);
      };
      float nan = from_bits(kNanF32);
      for (int i = 0; i < 8; ++i) expect(static_cast<Approx>(i), -NAN, nan);
      expect(Approx::ex2, -kInf, 0.f), expect(Approx::ex2, kInf, kInf);
      expect(Approx::ex2, 0.f, 1.f), expect(Approx::ex2, -0.f, 1.f);
      expect(Approx::ex2, 1e30f, kInf), expect(Approx::ex2, -1e30f, 0.f);
      expect(Approx::ex2, 128.f, kInf), expect(Approx::ex2, -3.f, 0.125f);
      expect(Approx::ex2, -130.f, ftz ? 0.f : 0x1p-130f);
      expect(Approx::rcp, -kInf, -0.f), expect(Approx::rcp, kInf, 0.f);
      expect(Approx::rcp, 0.f, kInf), expect(Approx::rcp, -0.f, -kInf);
      expect(Approx::rcp, 4.f, 0.25f), expect(Approx::rcp, 0x1p-140f, kInf);
      expect(Approx::rcp, 0x1p127f, ftz ? 0.f : 0x1p-127f);
      expect(Approx::sqrt, -0.f, -0.f), expect(Approx::sqrt, 0.f, 0.f);
      expect(Approx::sqrt, kInf, kInf), expect(Approx::sqrt, -1.f, nan);
      expect(Approx::sqrt, -kInf, nan), expect(Approx::sqrt, 0x1p-140f, ftz ? 0.f : 0x1p-70f);
      expect(Approx::rsqrt, 0.f, kInf), expect(Approx::rsqrt, -0.f, -kInf);
      expect(Approx::rsqrt, kInf, 0.f), expect(Approx::rsqrt, -1.f, nan);
      expect(Approx::rsqrt, -kInf, nan), expect(Approx::rsqrt, 0x1p-140f, ftz ? kInf : 0x1p70f);
      expect(Approx::lg2, 0.f, -kInf), expect(Approx::lg2, -0.f, -kInf);
      expect(Approx::lg2, kInf, kInf), expect(Approx::lg2, -1.f, nan);
      expect(Approx::lg2, 1.f, 0.f), expect(Approx::lg2, 0x1p-140f, ftz ? -kInf : -140.f);
      expect(Approx::sin, 0.f, 0.f), expect(Approx::sin, -0.f, -0.f);
      expect(Approx::sin, kInf, nan), expect(Approx::cos, -kInf, nan);
      expect(Approx::cos, 0.f, 1.f), expect(Approx::cos, -0.f, 1.f);
      expect(Approx::tanh, 0.f, 0.f), expect(Approx::tanh, -0.f, -0.f);
      expect(Approx::tanh, kInf, 1.f), expect(Approx::tanh, -kInf, -1.f);
      for (float x : {100.f, 9.f, -9.f}) {
        check(std::abs(approx(Approx::tanh, x, ftz, seed)) <= 1.f, "tanh stays inside [-1, 1]");
      }
    }
}

void purity() {
  test::Rng rng(30);
  for (int i = 0; i < 8; ++i) {
    auto op = static_cast<Approx>(i);
    for (bool ftz : {false, true}) {
      float in[37], out[37];
      for (float& x : in) x = i % 2 ? from_bits(rng.next()) : operand(op, rng);
      in[5] = NAN, in[6] = kInf, in[7] = -kInf, in[8] = 0.f, in[9] = -0.f, in[10] = 1e-40f;
      approx_n(op, in, out, 37, ftz, 99);
      for (int n = 0; n < 37; ++n) {
        check(bits(out[n]) == bits(approx(op, in[n], ftz, 99)), "op %d of %a: array and scalar", i,
              in[n]);
        if (ftz && op != Approx::tanh) {
          check(bits(out[n]) == bits(flush(out[n])), "op %d of %a: subnormal result", i, in[n]);
        }
      }
      approx_n(op, in, in, 37, ftz, 99);
      for (int n = 0; n < 37; ++n) check(bits(out[n]) == bits(in[n]), "op %d in place", i);
    }
  }
}

void division() {
  test::Rng rng(31);
  for (uint64_t seed : {0ull, 5ull}) {
    long moved = 0;
    for (int n = 0; n < 200000; ++n) {
      float a = from_bits(rng.next()), b = from_bits(rng.next());
      if (!std::isfinite(a) || !std::isfinite(b) || b == 0) continue;
      long double v = static_cast<long double>(a) / b;
      bool full = n & 1;
      float got = approx_div(a, b, full, false, seed);
      if (!full && std::abs(b) > 0x1p126f) {
        check(got == 0 && std::signbit(got) == (v < 0 || std::signbit(a) != std::signbit(b)),
              "div.approx by %a is a signed zero", b);
        continue;
      }
      if (std::abs(v) >= 0x1.fffffep127L) continue;
      double error = std::abs(static_cast<double>(got - v));
      check(error <= 2 * ulp(v), "div %a / %a: %a", a, b, got);
      moved += got != a / b;
    }
    check(seed == 0 || moved > 50000, "division: only %ld results moved", moved);
    check(seed != 0 || moved == 0, "division with seed 0 is correctly rounded (%ld moved)", moved);
  }
  float nan = from_bits(kNanF32);
  check(bits(approx_div(kInf, 0x1p127f, false, false, 1)) == bits(nan), "inf / huge is NaN");
  check(approx_div(kInf, 0x1p127f, true, false, 1) == kInf, "div.full has no such range");
  check(approx_div(1.f, 0.f, true, false, 1) == kInf, "1 / 0");
  check(approx_div(6.f, kInf, false, false, 1) == 0.f, "6 / inf");
  check(approx_div(6.f, 1e-40f, true, true, 1) == kInf, "ftz flushes the divisor");
}

void halves() {
  for (Format f : {Format::f16, Format::bf16}) {
    bool f16 = f == Format::f16;
    for (Approx op : {Approx::ex2, Approx::tanh})
      for (uint64_t seed : {0ull, 3ull}) {
        long moved = 0;
        for (uint32_t h = 0; h < 0x10000; ++h) {
          auto x = static_cast<uint16_t>(h);
          uint16_t got = approx_half(op, f, x, seed);
          double a = f16 ? f16_to_float(x) : bf16_to_float(x);
          double y = f16 ? f16_to_float(got) : bf16_to_float(got);
          if (std::isnan(a)) {
            check(got == 0x7fff, "half op of NaN");
            continue;
          }
          double v = op == Approx::ex2 ? std::exp2(a) : std::tanh(a);
          double limit = op == Approx::ex2 ? v * (f16 ? std::exp2(-9.9) : 0x1p-7)
                         : f16             ? std::exp2(-10.987)
                                           : 0x1p-8;
          if (f16) limit = std::max(limit, 0x1p-25);
          // Results beyond the format's range, or flushed (bf16): infinity and zero.
          bool edge =
              op == Approx::ex2 && (v > (f16 ? 65504. : 0x1.fep127) || (!f16 && v < 0x1p-126));
          if (edge) {
            check(y == (v > 1 ? kInf : 0.) || std::abs(y - v) <= limit, "half ex2 of %a: %a", a, y);
            continue;
          }
          check(std::abs(y - v) <= limit, "half op %d format %d of %a: %a", int(op), int(f), a, y);
          moved += got != approx_half(op, f, x, 0);
        }
        check(seed == 0 || moved > 100, "half op %d format %d: %ld moved", int(op), int(f), moved);
      }
  }
  for (uint64_t seed : {0ull, 3ull}) {
    check(approx_half(Approx::ex2, Format::bf16, 0x0001, seed) == 0x3f80,
          "ex2 of a subnormal bf16");
    check(approx_half(Approx::ex2, Format::f16, 0xfc00, seed) == 0, "ex2 of -inf");
    check(approx_half(Approx::tanh, Format::f16, 0x8000, seed) == 0x8000, "tanh of -0");
    check(approx_half(Approx::tanh, Format::bf16, 0xff80, seed) == 0xbf80, "tanh of -inf");
  }
}

}  // namespace

int main() {
  bounds();
  specials();
  purity();
  division();
  halves();
  return test::finish("approx_test");
}
