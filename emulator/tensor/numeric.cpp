#include "tensor/numeric.h"

#include <immintrin.h>

#include <array>

namespace l4k::emu {
namespace {

struct Layout {
  int man;            // stored mantissa bits
  int bias;           // exponent bias
  int pad;            // zero bits below the mantissa (tf32 is an f32 with 13 of them)
  int sign;           // position of the sign bit, after padding
  uint64_t max;       // largest finite magnitude, before padding
  uint64_t infinity;  // magnitude of infinity before padding; 0: the format has none
  uint64_t nan;       // canonical NaN, after padding
};

constexpr Layout layout(Format f) {
  switch (f) {
    case Format::f64:
      return {52, 1023, 0, 63, 0x7fefffffffffffffull, 0x7ff0000000000000ull, 0x7fffffffffffffffull};
    case Format::f32:
      return {23, 127, 0, 31, 0x7f7fffff, 0x7f800000, kNanF32};
    case Format::tf32:
      return {10, 127, 13, 31, 0x7f7fffff >> 13, 0x7f800000 >> 13, kNanF32};
    case Format::f16:
      return {10, 15, 0, 15, 0x7bff, 0x7c00, kNanF16};
    case Format::bf16:
      return {7, 127, 0, 15, 0x7f7f, 0x7f80, kNanBf16};
    case Format::e4m3:
      return {3, 7, 0, 7, 0x7e, 0, kNanFp8};
    case Format::e5m2:
      return {2, 15, 0, 7, 0x7b, 0x7c, kNanFp8};
  }
  __builtin_unreachable();
}

bool away_from_zero(Round how, bool negative, bool odd, int rest) {  // rest: 0 exact, 1 <, 2 =, 3 >
  switch (how) {
    case Round::rn:
      return rest == 3 || (rest == 2 && odd);
    case Round::rna:
      return rest >= 2;
    case Round::rz:
      return false;
    case Round::rm:
      return rest && negative;
    case Round::rp:
      return rest && !negative;
  }
  __builtin_unreachable();
}

// Bits of (-1)^negative * m * 2^e, rounded once.
uint64_t round_pack(const Layout& f, bool negative, uint64_t m, int e, Round how, bool satfinite) {
  uint64_t sign = uint64_t{negative} << f.sign;
  if (m == 0) return sign;
  int shift = std::countl_zero(m);
  m <<= shift;
  int exponent = e - shift + 63, lowest = 1 - f.bias;
  int keep = f.man + 1 - (exponent < lowest ? lowest - exponent : 0);
  uint64_t kept = keep > 0 ? m >> (64 - keep) : 0;
  int rest;
  if (keep < 0) {
    rest = 1;
  } else {
    uint64_t low = keep > 0 ? m << keep : m;
    constexpr uint64_t half = uint64_t{1} << 63;
    rest = low == 0 ? 0 : low < half ? 1 : low == half ? 2 : 3;
  }
  kept += away_from_zero(how, negative, kept & 1, rest);
  // A carry out of the mantissa lands in the exponent field, which is what it means.
  uint64_t magnitude = exponent < lowest ? kept : (uint64_t(exponent + f.bias - 1) << f.man) + kept;
  if (magnitude > f.max) {
    bool to_infinity = how == Round::rn || how == Round::rna || (how == Round::rp && !negative) ||
                       (how == Round::rm && negative);
    magnitude = to_infinity && !satfinite && f.infinity ? f.infinity : f.max;
  }
  return sign | magnitude << f.pad;
}

uint64_t finish(const Layout& f, uint64_t magnitude_or_signed, const CvtOptions& o, Format to) {
  uint64_t x = magnitude_or_signed, sign = uint64_t{1} << f.sign, magnitude = x & (sign - 1);
  if ((o.relu || o.sat) && (x & sign)) return 0;
  if (o.sat) {
    uint64_t one = uint64_t(f.bias) << f.man << f.pad;
    if (magnitude > one) return one;
  }
  if (o.ftz && to == Format::f32 && magnitude < 0x00800000u) x &= sign;
  return x;
}

uint64_t from_double(Format to, double x, const CvtOptions& o) {
  const Layout f = layout(to);
  if (std::isnan(x)) return o.sat ? 0 : f.nan;
  bool saturating = o.satfinite || to == Format::e4m3 || to == Format::e5m2;
  uint64_t u = std::bit_cast<uint64_t>(x);
  bool negative = u >> 63;
  uint64_t bits;
  if (std::isinf(x)) {
    bits = uint64_t{negative} << f.sign | (saturating || !f.infinity ? f.max : f.infinity) << f.pad;
  } else {
    int biased = static_cast<int>(u >> 52 & 0x7ff);
    uint64_t m = u & 0xfffffffffffffull;
    if (biased) m |= uint64_t{1} << 52;
    bits = round_pack(f, negative, m, (biased ? biased : 1) - 1075, o.round, saturating);
  }
  return finish(f, bits, o, to);
}

double to_double(Format from, uint64_t x, bool ftz = false) {
  switch (from) {
    case Format::f64:
      return std::bit_cast<double>(x);
    case Format::f32:
    case Format::tf32: {
      float v = from_bits(static_cast<uint32_t>(x));
      return ftz ? flush(v) : v;
    }
    case Format::f16:
      return f16_to_float(static_cast<uint16_t>(x));
    case Format::bf16:
      return bf16_to_float(static_cast<uint16_t>(x));
    case Format::e4m3:
      return e4m3_to_float(static_cast<uint8_t>(x));
    case Format::e5m2:
      return e5m2_to_float(static_cast<uint8_t>(x));
  }
  __builtin_unreachable();
}

constexpr std::array<float, 256> small_table(int man, int bias, bool ieee) {
  std::array<float, 256> t{};
  for (int i = 0; i < 256; ++i) {
    int exponent = (i & 0x7f) >> man, mantissa = i & ((1 << man) - 1);
    int top = (1 << (7 - man)) - 1;
    uint32_t sign = static_cast<uint32_t>(i >> 7) << 31;
    bool nan = ieee ? exponent == top && mantissa : (i & 0x7f) == 0x7f;
    if (nan) {
      t[i] = std::bit_cast<float>(sign | kNanF32);
    } else if (ieee && exponent == top) {
      t[i] = std::bit_cast<float>(sign | 0x7f800000u);
    } else {
      float v = static_cast<float>(exponent ? mantissa + (1 << man) : mantissa);
      for (int e = (exponent ? exponent : 1) - bias - man; e < 0; ++e) v *= 0.5f;
      for (int e = (exponent ? exponent : 1) - bias - man; e > 0; --e) v *= 2.f;
      t[i] = i & 0x80 ? -v : v;
    }
  }
  return t;
}
constexpr auto kE4m3 = small_table(3, 7, false);
constexpr auto kE5m2 = small_table(2, 15, true);

uint32_t fp8x2_to_f16x2(uint16_t x, bool relu, const std::array<float, 256>& table) {
  CvtOptions o;
  o.relu = relu;
  return uint32_t{float_to_f16(table[x >> 8], o)} << 16 | float_to_f16(table[x & 0xff], o);
}

bool is_plain(const CvtOptions& o) { return o.round == Round::rn && !o.ftz && !o.sat; }

// Round to nearest even, clamped to `max`: the same as from_double, several times faster.
template <int man, int bias>
uint8_t narrow_fp8(float x, float max, bool relu) {
  uint32_t u = bits(x), sign = u >> 31 << 7;
  if (x != x) return kNanFp8;
  if (relu && sign) return 0;
  float magnitude = std::fabs(x);
  if (magnitude >= max) magnitude = max;
  if (magnitude < from_bits(uint32_t{127 - bias + 1} << 23)) {
    // Subnormal: adding a power of two whose unit is the format's rounds in the right place.
    constexpr uint32_t shifter = uint32_t{127 + 24 - bias - man} << 23;
    return static_cast<uint8_t>(sign | (bits(magnitude + from_bits(shifter)) - shifter));
  }
  constexpr int drop = 23 - man;
  u = bits(magnitude);
  u += (1u << (drop - 1)) - 1 + (u >> drop & 1);
  return static_cast<uint8_t>(sign | ((u >> drop) - (uint32_t{127 - bias} << man)));
}

// The nearest double to s + err (|err| below half a unit of s) whose last bit says "inexact":
// rounding that to 24 bits gives what rounding the exact sum would have given.
double to_odd(double s, double err) {
  if (err == 0 || !std::isfinite(s)) return s;
  uint64_t u = std::bit_cast<uint64_t>(s);
  if (u & 1) return s;
  return std::bit_cast<double>((err > 0) == (s > 0) ? u + 1 : u - 1);
}

double add_odd(double a, double b) {
  double s = a + b;
  if (!std::isfinite(s)) return s;
  double z = s - a;
  return to_odd(s, (a - (s - z)) + (b - z));
}

float round_f32(double x, const F32Options& o) {
  CvtOptions c;
  c.round = o.round, c.ftz = o.ftz, c.sat = o.sat;
  return from_bits(static_cast<uint32_t>(from_double(Format::f32, x, c)));
}

float finish_f32(float x, const F32Options& o) {
  if (o.ftz) x = flush(x);
  return o.sat ? saturate(x) : canonical(x);
}

// An exact zero sum of operands of different sign is -0 when rounding down, +0 otherwise.
double sum_odd(double a, double b, Round how) {
  double s = add_odd(a, b);
  if (s == 0 && how == Round::rm && std::signbit(a) != std::signbit(b)) return -0.0;
  return s;
}

}  // namespace

float f16_to_float(uint16_t x) { return _cvtsh_ss(x); }
float e4m3_to_float(uint8_t x) { return kE4m3[x]; }
float e5m2_to_float(uint8_t x) { return kE5m2[x]; }
uint32_t e4m3x2_to_f16x2(uint16_t x, bool relu) { return fp8x2_to_f16x2(x, relu, kE4m3); }
uint32_t e5m2x2_to_f16x2(uint16_t x, bool relu) { return fp8x2_to_f16x2(x, relu, kE5m2); }

void widen_f16(const uint16_t* in, float* out, int count) {
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(h));
  }
  for (; i < count; ++i) out[i] = _cvtsh_ss(in[i]);
}

void widen_bf16(const uint16_t* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = bf16_to_float(in[i]);
}

uint16_t float_to_bf16(float x, CvtOptions o) {
  if (o.round == Round::rn && !o.ftz && !o.sat && !o.satfinite && !o.relu) {
    uint32_t u = bits(x);
    if (x != x) return kNanBf16;
    return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
  }
  return static_cast<uint16_t>(from_double(Format::bf16, o.ftz ? flush(x) : x, o));
}

uint16_t float_to_f16(float x, CvtOptions o) {
  if (o.round == Round::rn && !o.ftz && !o.sat && !o.satfinite && !o.relu) {
    return x == x ? static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)) : kNanF16;
  }
  return static_cast<uint16_t>(from_double(Format::f16, o.ftz ? flush(x) : x, o));
}

uint32_t float_to_tf32(float x, CvtOptions o) {
  return static_cast<uint32_t>(from_double(Format::tf32, x, o));
}
uint8_t float_to_e4m3(float x, CvtOptions o) {
  if (is_plain(o)) return narrow_fp8<3, 7>(x, 448.f, o.relu);
  return static_cast<uint8_t>(from_double(Format::e4m3, x, o));
}
uint8_t float_to_e5m2(float x, CvtOptions o) {
  if (is_plain(o)) return narrow_fp8<2, 15>(x, 57344.f, o.relu);
  return static_cast<uint8_t>(from_double(Format::e5m2, x, o));
}
uint8_t f16_to_e4m3(uint16_t x, bool relu) {
  CvtOptions o;
  o.relu = relu;
  return float_to_e4m3(f16_to_float(x), o);
}
uint8_t f16_to_e5m2(uint16_t x, bool relu) {
  CvtOptions o;
  o.relu = relu;
  return float_to_e5m2(f16_to_float(x), o);
}

uint32_t pack_bf16x2(float a, float b, CvtOptions o) {
  return uint32_t{float_to_bf16(a, o)} << 16 | float_to_bf16(b, o);
}
uint32_t pack_f16x2(float a, float b, CvtOptions o) {
  return uint32_t{float_to_f16(a, o)} << 16 | float_to_f16(b, o);
}
uint16_t pack_e4m3x2(float a, float b, CvtOptions o) {
  return static_cast<uint16_t>(float_to_e4m3(a, o) << 8 | float_to_e4m3(b, o));
}
uint16_t pack_e5m2x2(float a, float b, CvtOptions o) {
  return static_cast<uint16_t>(float_to_e5m2(a, o) << 8 | float_to_e5m2(b, o));
}

uint64_t cvt_float(Format to, Format from, uint64_t x, CvtOptions o) {
  return from_double(to, to_double(from, x, o.ftz), o);
}

double round_to_integral(double x, Round how) {
  switch (how) {
    case Round::rz:
      return std::trunc(x);
    case Round::rm:
      return std::floor(x);
    case Round::rp:
      return std::ceil(x);
    default:
      return std::nearbyint(x);
  }
}

float round_to_integral(float x, Round how, bool ftz, bool sat) {
  if (ftz) x = flush(x);
  x = static_cast<float>(round_to_integral(static_cast<double>(x), how));
  return sat ? saturate(x) : canonical(x);
}

uint64_t float_to_int(Format from, uint64_t x, int width, bool is_signed, Round how, bool ftz) {
  double v = to_double(from, x, ftz);
  uint64_t top = uint64_t{1} << (width - 1);
  uint64_t all = top | (top - 1);
  if (std::isnan(v)) {
    if (from != Format::f64 && width < 64) return 0;
    return is_signed ? ~all | top : top;
  }
  v = round_to_integral(v, how);
  double limit = std::ldexp(1.0, is_signed ? width - 1 : width);  // first value that does not fit
  if (v >= limit) return is_signed ? top - 1 : all;
  if (is_signed) return v < -limit ? ~all | top : static_cast<uint64_t>(static_cast<int64_t>(v));
  return v <= 0 ? 0 : static_cast<uint64_t>(v);
}

uint64_t int_to_float(Format to, uint64_t x, bool is_signed, CvtOptions o) {
  const Layout f = layout(to);
  bool negative = is_signed && static_cast<int64_t>(x) < 0;
  return finish(f, round_pack(f, negative, negative ? 0 - x : x, 0, o.round, o.satfinite), o, to);
}

uint64_t int_to_int(uint64_t x, bool from_signed, int to_width, bool to_signed, bool sat) {
  uint64_t top = uint64_t{1} << (to_width - 1), all = top | (top - 1);
  if (sat) {
    bool negative = from_signed && static_cast<int64_t>(x) < 0;
    if (to_signed) {
      if (negative && static_cast<int64_t>(x) < -static_cast<int64_t>(top - 1) - 1)
        return ~all | top;
      if (!negative && x > top - 1) return top - 1;
    } else {
      if (negative) return 0;
      if (x > all) return all;
    }
  }
  x &= all;
  return to_signed && (x & top) ? x | ~all : x;
}

float f32_add(float a, float b, F32Options o) {
  if (o.ftz) a = flush(a), b = flush(b);
  if (o.round == Round::rn) return finish_f32(a + b, o);
  return round_f32(sum_odd(a, b, o.round), o);
}
float f32_sub(float a, float b, F32Options o) {
  return f32_add(a, from_bits(bits(b) ^ 0x80000000u), o);
}
float f32_mul(float a, float b, F32Options o) {
  if (o.ftz) a = flush(a), b = flush(b);
  if (o.round == Round::rn) return finish_f32(a * b, o);
  return round_f32(static_cast<double>(a) * b, o);
}
float f32_fma(float a, float b, float c, F32Options o) {
  if (o.ftz) a = flush(a), b = flush(b), c = flush(c);
  if (o.round == Round::rn) return finish_f32(std::fma(a, b, c), o);
  return round_f32(sum_odd(static_cast<double>(a) * b, c, o.round), o);
}
float f32_div(float a, float b, F32Options o) {
  if (o.ftz) a = flush(a), b = flush(b);
  if (o.round == Round::rn) return finish_f32(a / b, o);
  double x = a, y = b, q = x / y;
  if (!std::isfinite(q) || std::isinf(y)) return round_f32(q, o);
  double rest = std::fma(-q, y, x);
  return round_f32(to_odd(q, std::signbit(y) ? -rest : rest), o);
}
float f32_rcp(float a, F32Options o) { return f32_div(1.f, a, o); }
float f32_sqrt(float a, F32Options o) {
  if (o.ftz) a = flush(a);
  if (o.round == Round::rn) return finish_f32(std::sqrt(a), o);
  double x = a, s = std::sqrt(x);
  return round_f32(std::isfinite(s) ? to_odd(s, std::fma(-s, s, x)) : s, o);
}

float f32_min(float a, float b, bool ftz, bool nan) {
  if (ftz) a = flush(a), b = flush(b);
  if (a != a || b != b) return nan || (a != a && b != b) ? from_bits(kNanF32) : a != a ? b : a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
float f32_max(float a, float b, bool ftz, bool nan) {
  if (ftz) a = flush(a), b = flush(b);
  if (a != a || b != b) return nan || (a != a && b != b) ? from_bits(kNanF32) : a != a ? b : a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}

void f32_add_n(const float* a, const float* b, float* d, int count, bool ftz) {
  if (ftz)
    for (int i = 0; i < count; ++i) d[i] = canonical(flush(flush(a[i]) + flush(b[i])));
  else
    for (int i = 0; i < count; ++i) d[i] = canonical(a[i] + b[i]);
}
void f32_mul_n(const float* a, const float* b, float* d, int count, bool ftz) {
  if (ftz)
    for (int i = 0; i < count; ++i) d[i] = canonical(flush(flush(a[i]) * flush(b[i])));
  else
    for (int i = 0; i < count; ++i) d[i] = canonical(a[i] * b[i]);
}
void f32_fma_n(const float* a, const float* b, const float* c, float* d, int count, bool ftz) {
  if (ftz)
    for (int i = 0; i < count; ++i)
      d[i] = canonical(flush(std::fma(flush(a[i]), flush(b[i]), flush(c[i]))));
  else
    for (int i = 0; i < count; ++i) d[i] = canonical(std::fma(a[i], b[i], c[i]));
}

uint16_t half_op(Format format, HalfOp op, uint16_t a, uint16_t b, uint16_t c, HalfOptions o) {
  bool f16 = format == Format::f16;
  if (!o.ftz && !o.sat && !o.relu && op <= HalfOp::fma) {
    // In f32, rounded twice: right unless the f32 result is a tie of the narrow format or so small
    // that the narrow format's unit is another one.
    auto wide = [&](uint16_t h) { return f16 ? f16_to_float(h) : bf16_to_float(h); };
    float x = wide(a), y = wide(b);
    float r = op == HalfOp::add   ? x + y
              : op == HalfOp::sub ? x - y
              : op == HalfOp::mul ? x * y
                                  : std::fma(x, y, wide(c));
    bool tie = f16 ? (bits(r) & 0x1fff) == 0x1000 : (bits(r) & 0xffff) == 0x8000;
    if (!tie && std::fabs(r) >= 0x1p-13f) return f16 ? float_to_f16(r) : float_to_bf16(r);
  }
  auto value = [&](uint16_t x) -> double {
    if (o.ftz && !(x & (f16 ? 0x7c00 : 0x7f80))) x &= 0x8000;
    return f16 ? f16_to_float(x) : bf16_to_float(x);
  };
  double x = value(a), y = value(b), r = 0;
  switch (op) {
    case HalfOp::add:
      r = add_odd(x, y);
      break;
    case HalfOp::sub:
      r = add_odd(x, -y);
      break;
    case HalfOp::mul:
      r = x * y;
      break;
    case HalfOp::fma:
      r = add_odd(x * y, value(c));
      break;
    case HalfOp::min:
      r = f32_min(static_cast<float>(x), static_cast<float>(y), false, o.nan);
      break;
    case HalfOp::max:
      r = f32_max(static_cast<float>(x), static_cast<float>(y), false, o.nan);
      break;
  }
  CvtOptions cvt;
  cvt.sat = o.sat, cvt.relu = o.relu;
  auto result = static_cast<uint16_t>(from_double(format, r, cvt));
  if (o.ftz && !(result & (f16 ? 0x7c00 : 0x7f80))) result &= 0x8000;
  return result;
}

}  // namespace l4k::emu
