// Conversions against NVIDIA's own host code (cuda_fp8.h, cuda_fp16.h, cuda_bf16.h) and against a
// brute-force nearest-value search; directed rounding against the CPU's own rounding modes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "tensor/numeric.h"

using namespace l4k::emu;
using test::check;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

bool same(float a, float b) { return bits(a) == bits(b) || (a != a && b != b); }

// Every 16-bit upper half with interesting lower halves, and random bits: edges of every format.
template <typename Fn>
void many_floats(Fn fn) {
  test::Rng rng(1);
  for (uint32_t high = 0; high < 0x10000; ++high) {
    for (uint32_t low : {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x2000u, 0x3000u, 0x7fffu,
                         0x8000u, 0x8001u, 0xf000u, 0xffffu}) {
      fn(from_bits(high << 16 | low));
    }
    fn(from_bits(high << 16 | (rng.next() & 0xffff)));
  }
}

CvtOptions rounding(Round r, bool satfinite = false, bool relu = false) {
  CvtOptions o;
  o.round = r, o.satfinite = satfinite, o.relu = relu;
  return o;
}

void against_cuda_headers() {
  many_floats([](float x) {
    check(float_to_e4m3(x) == __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3) || x != x,
          "e4m3 of %a", x);
    check(float_to_e5m2(x) == __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2) || x != x,
          "e5m2 of %a", x);
    if (x != x) {
      check(float_to_e4m3(x) == 0x7f && float_to_e5m2(x) == 0x7f, "fp8 of NaN");
      check(float_to_f16(x) == 0x7fff && float_to_bf16(x) == 0x7fff, "half of NaN");
      return;
    }
    check(float_to_f16(x) == __half_raw(__float2half_rn(x)).x, "f16.rn of %a", x);
    check(float_to_f16(x, rounding(Round::rz)) == __half_raw(__float2half_rz(x)).x, "f16.rz %a", x);
    check(float_to_f16(x, rounding(Round::rm)) == __half_raw(__float2half_rd(x)).x, "f16.rm %a", x);
    check(float_to_f16(x, rounding(Round::rp)) == __half_raw(__float2half_ru(x)).x, "f16.rp %a", x);
    auto bf = [](__nv_bfloat16 v) { return __nv_bfloat16_raw(v).x; };
    check(float_to_bf16(x) == bf(__float2bfloat16_rn(x)), "bf16.rn %a", x);
    check(float_to_bf16(x, rounding(Round::rz)) == bf(__float2bfloat16_rz(x)), "bf16.rz %a", x);
    check(float_to_bf16(x, rounding(Round::rm)) == bf(__float2bfloat16_rd(x)), "bf16.rm %a", x);
    check(float_to_bf16(x, rounding(Round::rp)) == bf(__float2bfloat16_ru(x)), "bf16.rp %a", x);
  });
  for (int i = 0; i < 256; ++i) {
    auto x = static_cast<__nv_fp8_storage_t>(i);
    __half_raw a = __nv_cvt_fp8_to_halfraw(x, __NV_E4M3), b = __nv_cvt_fp8_to_halfraw(x, __NV_E5M2);
    check(same(e4m3_to_float(x), f16_to_float(a.x)), "e4m3 0x%02x", i);
    check(same(e5m2_to_float(x), f16_to_float(b.x)), "e5m2 0x%02x", i);
    uint16_t two = static_cast<uint16_t>(i << 8 | (i ^ 0x5a));
    __half_raw low = __nv_cvt_fp8_to_halfraw(two & 0xff, __NV_E4M3);
    bool nan = (i & 0x7f) == 0x7f || ((i ^ 0x5a) & 0x7f) == 0x7f;
    check(nan || e4m3x2_to_f16x2(two) == (uint32_t{a.x} << 16 | low.x), "e4m3x2 0x%04x", two);
  }
  check(e4m3x2_to_f16x2(0x7fff) == 0x7fff7fff, "e4m3 NaN becomes 0x7fff");
  check(e4m3x2_to_f16x2(0xb838, true) == 0x00003c00, "relu on widening");
  check(e5m2x2_to_f16x2(0xfc7c) == 0xfc007c00, "e5m2 infinities");
  for (uint32_t h = 0; h < 0x10000; ++h) {
    __half_raw raw;
    raw.x = static_cast<unsigned short>(h);
    check(same(f16_to_float(raw.x), __half2float(__half(raw))), "f16 0x%04x", h);
    uint8_t want = __nv_cvt_halfraw_to_fp8(raw, __NV_SATFINITE, __NV_E4M3);
    check(f16_to_e4m3(raw.x) == (f16_to_float(raw.x) != f16_to_float(raw.x) ? 0x7f : want),
          "f16 0x%04x to e4m3", h);
    want = __nv_cvt_halfraw_to_fp8(raw, __NV_SATFINITE, __NV_E5M2);
    check(f16_to_e5m2(raw.x) == (f16_to_float(raw.x) != f16_to_float(raw.x) ? 0x7f : want),
          "f16 0x%04x to e5m2", h);
  }
}

// All non-negative finite values of a format, ascending: rounding by search, no bit tricks.
struct Values {
  Format format;
  std::vector<double> v;
  explicit Values(Format f, uint32_t max) : format(f) {
    for (uint32_t i = 0; i <= max; ++i) {
      uint64_t x = f == Format::tf32 ? uint64_t{i} << 13 : i;
      v.push_back(std::bit_cast<double>(cvt_float(Format::f64, f, x)));
    }
  }
  uint32_t round(double x, Round how, bool negative) const {  // x >= 0; index of the result
    size_t hi = std::lower_bound(v.begin(), v.end(), x) - v.begin();
    if (hi < v.size() && v[hi] == x) return static_cast<uint32_t>(hi);
    size_t lo = hi - 1;
    double next = hi < v.size() ? v[hi] : v[lo] + (v[lo] - v[lo - 1]);
    double middle = (v[lo] + next) / 2;
    bool up = how == Round::rz   ? false
              : how == Round::rm ? negative
              : how == Round::rp ? !negative
              : x != middle      ? x > middle
                                 : how == Round::rna || lo % 2 == 1;
    return static_cast<uint32_t>(up ? hi : lo);
  }
};

void against_search() {
  struct Case {
    Format format;
    uint32_t max;
    int sign, pad;
  };
  for (Case c : {Case{Format::e4m3, 0x7e, 7, 0}, Case{Format::e5m2, 0x7b, 7, 0},
                 Case{Format::f16, 0x7bff, 15, 0}, Case{Format::bf16, 0x7f7f, 15, 0},
                 Case{Format::tf32, 0x7f7fffff >> 13, 31, 13}}) {
    Values values(c.format, c.max);
    bool ascending = std::is_sorted(values.v.begin(), values.v.end());
    check(ascending, "values of format %d ascend", int(c.format));
    test::Rng rng(2);
    for (int i = 0; i < 400000; ++i) {
      // Around values of the format, at every distance, and anything at all.
      size_t at = rng.below(static_cast<uint32_t>(values.v.size() - 1));
      double gap = values.v[at + 1] - values.v[at];
      double x = values.v[at] + gap * (i % 3 == 0 ? 0.5 : i % 3 == 1 ? rng.unit() : 0.0);
      if (i % 64 == 0) x = values.v.back() * (1 + rng.unit());
      bool negative = rng.next() & 1;
      for (Round how : {Round::rn, Round::rz, Round::rm, Round::rp, Round::rna}) {
        CvtOptions o = rounding(how, true);
        uint64_t got =
            cvt_float(c.format, Format::f64, std::bit_cast<uint64_t>(negative ? -x : x), o);
        uint64_t want = std::min(values.round(x, how, negative), c.max);
        want = want << c.pad | uint64_t{negative} << c.sign;
        check(got == want, "format %d rounding %d of %a: expected 0x%llx, got 0x%llx",
              int(c.format), int(how), negative ? -x : x, (unsigned long long)want,
              (unsigned long long)got);
      }
    }
  }
}

void special_conversions() {
  check(float_to_f16(65520.f) == 0x7c00 && float_to_f16(65519.f) == 0x7bff, "f16 overflow");
  check(float_to_f16(1e9f, rounding(Round::rn, true)) == 0x7bff, "f16 satfinite");
  check(float_to_f16(-kInf, rounding(Round::rn, true)) == 0xfbff, "f16 satfinite of -inf");
  check(float_to_f16(1e9f, rounding(Round::rz)) == 0x7bff, "f16.rz overflow stays finite");
  check(float_to_f16(-1e9f, rounding(Round::rp)) == 0xfbff, "f16.rp of -huge");
  check(float_to_bf16(3.4e38f) == 0x7f80, "bf16 overflow");
  check(float_to_bf16(3.4e38f, rounding(Round::rn, true)) == 0x7f7f, "bf16 satfinite");
  check(float_to_e4m3(448.f) == 0x7e && float_to_e4m3(1e6f) == 0x7e, "e4m3 clamps");
  check(float_to_e4m3(-kInf) == 0xfe && float_to_e5m2(kInf) == 0x7b, "fp8 infinities clamp");
  check(pack_bf16x2(1.f, 2.f) == 0x3f804000, "a is the upper half");
  check(pack_f16x2(1.f, 2.f) == 0x3c004000, "a is the upper half");
  check(pack_e4m3x2(1.f, 2.f) == 0x3840, "a is the upper byte");
  check(pack_e5m2x2(1.f, 2.f) == 0x3c40, "a is the upper byte");
  CvtOptions relu = rounding(Round::rn, false, true);
  check(pack_bf16x2(-1.f, NAN, relu) == 0x00007fff, "relu: negative to 0, NaN stays");
  check(float_to_e4m3(-1.f, relu) == 0 && float_to_f16(-0.f, relu) == 0, "relu");
  check(float_to_tf32(from_bits(0x3f801000), rounding(Round::rna)) == 0x3f802000, "tf32.rna tie");
  check(float_to_tf32(from_bits(0x3f801000)) == 0x3f800000, "tf32.rn tie to even");
  check(float_to_tf32(from_bits(0x3f803fff), rounding(Round::rz)) == 0x3f802000, "tf32.rz");
  check(float_to_tf32(NAN, rounding(Round::rna)) == kNanF32, "tf32 of NaN");
  CvtOptions ftz;
  ftz.ftz = true;
  check(cvt_float(Format::f32, Format::f64, std::bit_cast<uint64_t>(-1e-40), ftz) == 0x80000000,
        "cvt.ftz.f32.f64");
  CvtOptions sat;
  sat.sat = true;
  check(cvt_float(Format::f16, Format::f32, bits(7.f), sat) == 0x3c00, "cvt.sat above 1");
  check(cvt_float(Format::f32, Format::f32, bits(NAN), sat) == 0, "cvt.sat of NaN");
  check(cvt_float(Format::f32, Format::f16, 0x8001, sat) == 0, "cvt.sat below 0");
}

void integers() {
  const Round modes[] = {Round::rn, Round::rz, Round::rm, Round::rp};
  const int cpu[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  test::Rng rng(3);
  for (int m = 0; m < 4; ++m) {
    for (int i = 0; i < 200000; ++i) {
      float x = i % 2 ? from_bits(rng.next()) : static_cast<float>(rng.between(-70000, 70000));
      if (i % 8 == 0) x = std::floor(x) + 0.5f;
      if (x != x) continue;
      std::fesetround(cpu[m]);
      double whole = std::nearbyint(static_cast<double>(x));
      std::fesetround(FE_TONEAREST);
      for (int width : {8, 16, 32, 64})
        for (bool is_signed : {false, true}) {
          __int128 lo = is_signed ? -(__int128(1) << (width - 1)) : 0;
          __int128 hi = (__int128(1) << (is_signed ? width - 1 : width)) - 1;
          __int128 v = std::abs(whole) > 1e30 ? (whole > 0 ? hi : lo) : __int128(whole);
          v = v < lo ? lo : v > hi ? hi : v;
          uint64_t got = float_to_int(Format::f32, bits(x), width, is_signed, modes[m]);
          check(got == static_cast<uint64_t>(v), "f32 %a to %s%d mode %d: got 0x%llx", x,
                is_signed ? "s" : "u", width, m, (unsigned long long)got);
        }
      check(same(round_to_integral(x, modes[m]), static_cast<float>(whole)), "cvt.r?i.f32 %a", x);
      uint64_t integer = (uint64_t{rng.next()} << 32 | rng.next()) >> rng.below(64);
      std::fesetround(cpu[m]);
      volatile int64_t as_signed = static_cast<int64_t>(integer);
      volatile uint64_t as_unsigned = integer;
      volatile float from_signed = static_cast<float>(as_signed);
      // Through long double: the compiler's own unsigned conversion may round twice.
      volatile float from_unsigned = static_cast<float>(static_cast<long double>(as_unsigned));
      std::fesetround(FE_TONEAREST);
      CvtOptions o = rounding(modes[m]);
      check(int_to_float(Format::f32, integer, true, o) == bits(from_signed), "s64 to f32");
      check(int_to_float(Format::f32, integer, false, o) == bits(from_unsigned), "u64 to f32");
    }
  }
  uint32_t nan = bits(NAN);
  check(float_to_int(Format::f32, nan, 32, true, Round::rz) == 0, "NaN to s32 is 0");
  check(float_to_int(Format::f32, nan, 64, true, Round::rz) == 1ull << 63, "NaN to s64");
  check(float_to_int(Format::f32, nan, 64, false, Round::rz) == 1ull << 63, "NaN to u64");
  check(float_to_int(Format::f64, std::bit_cast<uint64_t>(double(NAN)), 32, true, Round::rz) ==
            0xffffffff80000000ull,
        "f64 NaN to s32");
  check(float_to_int(Format::f32, 1, 32, true, Round::rp) == 1, "a subnormal rounds up to 1");
  check(float_to_int(Format::f32, 1, 32, true, Round::rp, true) == 0, "unless it is flushed");
  check(int_to_float(Format::f16, 70000, false) == 0x7c00, "u32 to f16 overflows");
  check(int_to_float(Format::bf16, static_cast<uint64_t>(-3), true) == 0xc040, "s32 to bf16");
  for (int i = -300; i <= 300; ++i) {
    auto x = static_cast<uint64_t>(int64_t{i});
    int s8 = std::clamp(i, -128, 127), u8 = std::clamp(i, 0, 255);
    check(int_to_int(x, true, 8, true, true) == static_cast<uint64_t>(int64_t{s8}), "sat.s8 %d", i);
    check(int_to_int(x, true, 8, false, true) == static_cast<uint64_t>(u8), "sat.u8 %d", i);
    check(int_to_int(x, true, 8, true, false) == static_cast<uint64_t>(int64_t{int8_t(i)}), "s8");
    check(int_to_int(x, true, 8, false, false) == uint8_t(i), "u8 %d", i);
  }
  check(int_to_int(~0ull, false, 32, true, true) == 0x7fffffff, "u64 max to s32.sat");
  check(int_to_int(1ull << 63, true, 64, true, true) == 1ull << 63, "s64 min to s64.sat");
}

void arithmetic() {
  const Round modes[] = {Round::rn, Round::rz, Round::rm, Round::rp};
  const int cpu[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  test::Rng rng(4);
  for (int m = 0; m < 4; ++m) {
    F32Options o;
    o.round = modes[m];
    for (int i = 0; i < 500000; ++i) {
      volatile float a = from_bits(rng.next()), b = from_bits(rng.next()),
                     c = from_bits(rng.next());
      if (i % 4 == 1) b = from_bits((bits(a) ^ 0x80000000u) + rng.below(5) - 2);  // cancellation
      if (i % 4 == 2) b = from_bits((bits(a) & 0x7f800000u) ^ (rng.next() & 0x81ffffffu));
      if (i % 16 == 3) c = -(a * b);
      if (i % 97 == 0) a = i % 2 ? 0.f : -0.f;
      if (i % 101 == 0) b = i % 2 ? 0.f : -0.f;
      std::fesetround(cpu[m]);
      volatile float sum = a + b, product = a * b, quotient = a / b, root = std::sqrt(a);
      volatile float fused = std::fma(a, b, c), difference = a - b;
      std::fesetround(FE_TONEAREST);
      check(same(f32_add(a, b, o), sum), "add mode %d %a %a: %a, got %a", m, a, b, sum,
            f32_add(a, b, o));
      check(same(f32_sub(a, b, o), difference), "sub mode %d %a %a", m, a, b);
      check(same(f32_mul(a, b, o), product), "mul mode %d %a %a", m, a, b);
      check(same(f32_div(a, b, o), quotient), "div mode %d %a %a: %a, got %a", m, a, b, quotient,
            f32_div(a, b, o));
      check(same(f32_sqrt(a, o), root), "sqrt mode %d %a", m, a);
      check(same(f32_fma(a, b, c, o), fused), "fma mode %d %a %a %a: %a, got %a", m, a, b, c, fused,
            f32_fma(a, b, c, o));
    }
  }
  F32Options ftz;
  ftz.ftz = true;
  check(bits(f32_mul(1e-30f, -1e-12f, ftz)) == 0x80000000u, "mul.ftz flushes to -0");
  check(f32_add(1e-40f, 0.f, ftz) == 0, "add.ftz flushes inputs");
  check(f32_add(1e-40f, 0.f) == 1e-40f, "add keeps subnormals");
  F32Options sat;
  sat.sat = true;
  check(f32_add(1.f, 3.f, sat) == 1.f && bits(f32_add(NAN, 3.f, sat)) == 0, "add.sat");
  check(bits(f32_mul(-1.f, 0.f, sat)) == 0, "mul.sat of -0");
  check(bits(f32_add(kInf, -kInf)) == kNanF32, "NaN is canonical");
  check(bits(f32_min(-0.f, 0.f)) == 0x80000000u && bits(f32_max(-0.f, 0.f)) == 0, "-0 < +0");
  check(bits(f32_min(0.f, -0.f)) == 0x80000000u && bits(f32_max(0.f, -0.f)) == 0, "-0 < +0");
  check(f32_min(NAN, 2.f) == 2.f && f32_max(2.f, NAN) == 2.f, "one NaN gives the other");
  check(bits(f32_min(NAN, 2.f, false, true)) == kNanF32, "min.NaN");
  float in[32], other[32], third[32], out[32];
  for (int i = 0; i < 32; ++i) in[i] = from_bits(rng.next()), other[i] = from_bits(rng.next());
  for (int i = 0; i < 32; ++i) third[i] = from_bits(rng.next() & 0x807fffffu);
  for (bool f : {false, true}) {
    F32Options o;
    o.ftz = f;
    f32_add_n(in, other, out, 32, f);
    for (int i = 0; i < 32; ++i) check(bits(out[i]) == bits(f32_add(in[i], other[i], o)), "add_n");
    f32_mul_n(in, third, out, 32, f);
    for (int i = 0; i < 32; ++i) check(bits(out[i]) == bits(f32_mul(in[i], third[i], o)), "mul_n");
    f32_fma_n(in, third, other, out, 32, f);
    for (int i = 0; i < 32; ++i)
      check(bits(out[i]) == bits(f32_fma(in[i], third[i], other[i], o)), "fma_n");
  }
}

// Exact in long double (64 bits hold any product and nearly every sum of these), rounded once.
void halves() {
  test::Rng rng(5);
  for (Format f : {Format::f16, Format::bf16}) {
    bool f16 = f == Format::f16;
    auto value = [&](uint16_t x) { return f16 ? f16_to_float(x) : bf16_to_float(x); };
    for (int i = 0; i < 1000000; ++i) {
      auto a = static_cast<uint16_t>(rng.next()), b = static_cast<uint16_t>(rng.next());
      auto c = static_cast<uint16_t>(rng.next());
      if (i % 3 == 0) b = static_cast<uint16_t>(a ^ (rng.next() & 0x83ff));
      double x = value(a), y = value(b), z = value(c);
      if (!std::isfinite(x) || !std::isfinite(y) || !std::isfinite(z)) continue;
      auto nearest = [&](long double v) {
        double d = static_cast<double>(v);
        long double rest = v - d;  // round to odd by hand
        if (rest != 0 && !(std::bit_cast<uint64_t>(d) & 1)) {
          d = std::nextafter(d, rest > 0 ? HUGE_VAL : -HUGE_VAL);
        }
        return static_cast<uint16_t>(cvt_float(f, Format::f64, std::bit_cast<uint64_t>(d)));
      };
      auto exact_span = [](long double p, long double q) {
        return p == 0 || q == 0 || std::abs(std::ilogb(p) - std::ilogb(q)) < 40;
      };
      check(half_op(f, HalfOp::mul, a, b) == nearest((long double)x * y), "mul %04x %04x", a, b);
      if (exact_span(x, y)) {
        check(half_op(f, HalfOp::add, a, b) == nearest((long double)x + y), "add %04x %04x", a, b);
        check(half_op(f, HalfOp::sub, a, b) == nearest((long double)x - y), "sub %04x %04x", a, b);
      }
      long double p = (long double)x * y;
      if (exact_span(p, z)) {
        check(half_op(f, HalfOp::fma, a, b, c) == nearest(p + z), "fma %04x %04x %04x", a, b, c);
      }
    }
  }
  HalfOptions relu;
  relu.relu = true;
  check(half_op(Format::f16, HalfOp::fma, 0x3c00, 0xbc00, 0, relu) == 0, "fma.relu");
  check(half_op(Format::bf16, HalfOp::add, 0x7f80, 0xff80) == kNanBf16, "inf - inf");
  check(half_op(Format::f16, HalfOp::max, 0x7e00, 0x3c00) == 0x3c00, "max with a NaN");
  HalfOptions nan;
  nan.nan = true;
  check(half_op(Format::f16, HalfOp::max, 0x7e00, 0x3c00, 0, nan) == kNanF16, "max.NaN");
  HalfOptions ftz;
  ftz.ftz = true;
  check(half_op(Format::f16, HalfOp::add, 0x0001, 0x0000, 0, ftz) == 0, "add.ftz.f16");
  check(half_op(Format::f16, HalfOp::fma, 0x1001, 0x3400, 0x3c00) == 0x3c00, "fma below a tie");
  check(half_op(Format::f16, HalfOp::fma, 0x1001, 0x3c00, 0x3c00) == 0x3c01, "fma above a tie");
  check(half_op(Format::f16, HalfOp::fma, 0x1000, 0x3c00, 0x3c00) == 0x3c00, "fma on a tie");
}

}  // namespace

int main() {
  against_cuda_headers();
  against_search();
  special_conversions();
  integers();
  arithmetic();
  halves();
  return test::finish("numeric_test");
}
