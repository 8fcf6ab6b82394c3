// The .approx instructions: evaluated in double, moved inside the documented error, rounded once.
#include <algorithm>

#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kHalfUlp = 0x1p-24;  // relative error of the final rounding, at most

uint32_t mix(uint32_t x) {
  x ^= x >> 16, x *= 0x7feb352du;
  x ^= x >> 15, x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Uniform in [-1, 1], 0 for seed 0.
double noise(uint32_t key, uint32_t operand) {
  auto u = static_cast<int32_t>(mix(operand ^ key));
  return key ? u * 0x1p-31 : 0.0;
}

uint32_t key_of(uint64_t seed, int op) {
  if (seed == 0) return 0;
  uint32_t k = mix(static_cast<uint32_t>(seed) ^ mix(static_cast<uint32_t>(seed >> 32) + op + 1));
  return k ? k : 1;
}

// Spacing of floats at v.
double ulp(double v) {
  uint32_t e = std::max(bits(static_cast<float>(v)) >> 23 & 0xffu, 1u);
  return std::bit_cast<double>(uint64_t{e + 1023 - 127 - 23} << 52);
}

bool is_power_of_two(double v) { return (std::bit_cast<uint64_t>(v) & 0xfffffffffffffull) == 0; }

// v moved by at most `units` - 1/2 spacings, so that the rounded result is within `units` of exact.
double move_ulps(double v, double units, double u) {
  return is_power_of_two(v) ? v : v + u * (units - 0.5) * ulp(v);
}
// v moved by a relative error that leaves room for the final rounding.
double move_relative(double v, double error, double u) {
  return is_power_of_two(v) ? v : v + u * (v * (error - kHalfUlp));
}

// 2^x for |x| <= 1000, relative error about 1e-15; straight-line so that loops over it vectorise.
[[gnu::always_inline]] inline double exp2_fast(double x) {
  constexpr double shifter = 0x1.8p52;
  double n = (x + shifter) - shifter, r = (x - n) * 0.693147180559945309417;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t scale = (std::bit_cast<uint64_t>(n + shifter) + 1023) << 52;  // low bits of n + 1023
  return p * std::bit_cast<double>(scale);
}

[[gnu::always_inline]] inline float ex2(float x, double u) {
  // Clamped: beyond these everything is infinity or zero, also after the move.
  float clamped = x < 200.f ? x : 200.f;
  clamped = clamped > -200.f ? clamped : -200.f;
  float r = static_cast<float>(move_ulps(exp2_fast(clamped), 2, u));
  return x == x ? r : from_bits(kNanF32);
}

float rcp(float x, double u) {
  // Zeros and infinities count as powers of two, so they are not moved.
  return canonical(static_cast<float>(move_ulps(1.0 / static_cast<double>(x), 1, u)));
}

float rsqrt(float x, double u) {
  double v = 1.0 / std::sqrt(static_cast<double>(x));
  if (std::signbit(x) && x == 0) v = -1.0 / 0.0;
  if (!(v > 0) || std::isinf(v)) return canonical(static_cast<float>(v));
  return static_cast<float>(move_relative(v, 0x1p-22 * 0.5358867312681466, u));  // 2^-22.9
}

float sqrt(float x, double u) {
  double v = std::sqrt(static_cast<double>(x));
  if (!(v > 0) || std::isinf(v)) return canonical(static_cast<float>(v));
  return static_cast<float>(move_relative(v, 0x1p-23, u));
}

float lg2(float x, double u) {
  double v = std::log2(static_cast<double>(x));
  if (!std::isfinite(v)) return canonical(static_cast<float>(v));
  if (v == std::floor(v)) return static_cast<float>(v);
  double room =
      x > 0.5f && x < 2.f ? 0x1p-22 - std::abs(v) * kHalfUlp : std::abs(v) * (0x1p-22 - kHalfUlp);
  return static_cast<float>(v + u * room);
}

float circular(float x, bool is_cos, double u) {
  if (std::isnan(x) || std::isinf(x)) return from_bits(kNanF32);
  if (x == 0) return is_cos ? 1.f : x;
  double v = is_cos ? std::cos(static_cast<double>(x)) : std::sin(static_cast<double>(x));
  double magnitude = std::abs(static_cast<double>(x));
  // 2^-20.5 and 2^-14.7; beyond +-100 pi nothing is promised: let the error grow with the operand.
  double room = magnitude <= 2 * kPi
                    ? 0x1p-21 * 1.4142135623730951
                    : 0x1p-15 * 1.231144413344917 * std::max(1.0, magnitude / (100 * kPi));
  v += u * (room - kHalfUlp);
  return static_cast<float>(std::min(std::max(v, -1.0), 1.0));
}

float sine(float x, double u) { return circular(x, false, u); }
float cosine(float x, double u) { return circular(x, true, u); }

float tanh(float x, double u) {
  if (x == 0 || std::isnan(x) || std::isinf(x)) {
    return std::isinf(x) ? std::copysign(1.f, x) : canonical(x);
  }
  double v = std::tanh(static_cast<double>(x));
  v += u * (v * (0x1p-11 - kHalfUlp));
  // A subnormal result cannot hold a relative error of 2^-11 and one more rounding: it is not moved.
  if (std::abs(v) < 0x1p-126) v = x;
  return static_cast<float>(std::min(std::max(v, -1.0), 1.0));
}

// The function is a template argument: through a pointer it would not be inlined and vectorised.
template <float (*fn)(float, double)>
void each(const float* in, float* out, int count, bool ftz, uint32_t key) {
  if (ftz) {
    for (int i = 0; i < count; ++i)
      out[i] = flush(fn(flush(in[i]), noise(key, bits(flush(in[i])))));
  } else {
    for (int i = 0; i < count; ++i) out[i] = fn(in[i], noise(key, bits(in[i])));
  }
}

}  // namespace

void approx_n(Approx op, const float* in, float* out, int count, bool ftz, uint64_t seed) {
  uint32_t key = key_of(seed, static_cast<int>(op));
  switch (op) {
    case Approx::ex2:
      return each<ex2>(in, out, count, ftz, key);
    case Approx::rcp:
      return each<rcp>(in, out, count, ftz, key);
    case Approx::rsqrt:
      return each<rsqrt>(in, out, count, ftz, key);
    case Approx::sqrt:
      return each<sqrt>(in, out, count, ftz, key);
    case Approx::lg2:
      return each<lg2>(in, out, count, ftz, key);
    case Approx::tanh:
      return each<tanh>(in, out, count, false, key);
    case Approx::sin:
      return each<sine>(in, out, count, ftz, key);
    case Approx::cos:
      return each<cosine>(in, out, count, ftz, key);
  }
}

float approx(Approx op, float x, bool ftz, uint64_t seed) {
  approx_n(op, &x, &x, 1, ftz, seed);
  return x;
}

float approx_div(float a, float b, bool full, bool ftz, uint64_t seed) {
  if (ftz) a = flush(a), b = flush(b);
  double x = a, y = b;
  if (!full && std::abs(y) > 0x1p126 && !std::isinf(b)) {
    if (std::isnan(a) || std::isinf(a)) return from_bits(kNanF32);
    return from_bits((bits(a) ^ bits(b)) & 0x80000000u);
  }
  double v = x / y;
  if (v == 0 || !std::isfinite(v)) return canonical(static_cast<float>(v));
  double u = noise(key_of(seed, 16 + full), mix(bits(a)) + bits(b));
  float r = static_cast<float>(move_ulps(v, 2, u));
  return ftz ? flush(r) : r;
}

uint16_t approx_half(Approx op, Format format, uint16_t x, uint64_t seed) {
  bool f16 = format == Format::f16;
  float a = f16 ? f16_to_float(x) : bf16_to_float(x);
  uint32_t key = key_of(seed, 32 + static_cast<int>(op) + (f16 ? 64 : 0));
  double u = noise(key, x), half_ulp = f16 ? 0x1p-11 : 0x1p-8;  // relative
  double v;
  if (op == Approx::ex2) {
    if (!f16) a = flush(a);  // ex2.approx.ftz.bf16 has no other form
    v = std::exp2(static_cast<double>(a));
    // f16: 2^-9.9; bf16: 2^-7. Subnormal f16 results have no room besides their own rounding.
    double error = f16 ? 0x1p-10 * 1.071773462536293 : 0x1p-7;
    bool exact = !std::isfinite(v) || is_power_of_two(v) || (f16 && v < 0x1p-14);
    if (!exact) v += u * v * (error - half_ulp);
  } else {
    v = std::tanh(static_cast<double>(a));
    // Absolute errors 2^-10.987 and 2^-8, less what rounding the moved value takes.
    double error = f16 ? 0x1p-11 * 1.0090516338446813 : 0x1p-8;
    double own = (std::abs(v) + error) * half_ulp;
    if (a != 0 && std::isfinite(a)) v += u * std::max(0.0, error - own);
    v = std::min(std::max(v, -1.0), 1.0);
    if (a == 0) return x;
  }
  uint64_t out = cvt_float(format, Format::f64, std::bit_cast<uint64_t>(v));
  if (op == Approx::ex2 && !f16 && !(out & 0x7f80)) out &= 0x8000;
  return static_cast<uint16_t>(out);
}

}  // namespace l4k::emu
