// Floating-point arithmetic.
#include <bit>
#include <cfenv>
#include <cmath>

#include "machine/core/machine.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;

const F32Options& options(const Inst& in) { return in.modifiers.as<F32Options>(); }
// The vectorised path: a full warp, round to nearest, no saturation.
bool plain(const Warp& w, F32Options o) {
  return w.active == kAllLanes && o.round == Round::rn && !o.sat;
}

void f32_add(Warp& w, const Inst& in) {
  const F32Options o = options(in);
  if (plain(w, o))
    return f32_add_n(w.reg<float>(in.s[0]), w.reg<float>(in.s[1]), w.reg<float>(in.d[0]), 32,
                     o.ftz);
  map2<float, float, float>(w, in, [o](float a, float b) { return emu::f32_add(a, b, o); });
}
void f32_sub(Warp& w, const Inst& in) {
  map2<float, float, float>(w, in,
                            [o = options(in)](float a, float b) { return emu::f32_sub(a, b, o); });
}
void f32_mul(Warp& w, const Inst& in) {
  const F32Options o = options(in);
  if (plain(w, o))
    return f32_mul_n(w.reg<float>(in.s[0]), w.reg<float>(in.s[1]), w.reg<float>(in.d[0]), 32,
                     o.ftz);
  map2<float, float, float>(w, in, [o](float a, float b) { return emu::f32_mul(a, b, o); });
}
void f32_fma(Warp& w, const Inst& in) {
  const F32Options o = options(in);
  if (plain(w, o))
    return f32_fma_n(w.reg<float>(in.s[0]), w.reg<float>(in.s[1]), w.reg<float>(in.s[2]),
                     w.reg<float>(in.d[0]), 32, o.ftz);
  map3<float, float, float, float>(
      w, in, [o](float a, float b, float c) { return emu::f32_fma(a, b, c, o); });
}
void f32_div(Warp& w, const Inst& in) {
  map2<float, float, float>(w, in,
                            [o = options(in)](float a, float b) { return emu::f32_div(a, b, o); });
}
struct ApproxDivision {
  bool full, ftz;
};
void f32_div_approx(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<ApproxDivision>();
  uint64_t seed = w.m->approximation_seed();
  map2<float, float, float>(
      w, in, [&](float a, float b) { return approx_div(a, b, m.full, m.ftz, seed); });
}
void f32_rcp(Warp& w, const Inst& in) {
  map1<float, float>(w, in, [o = options(in)](float a) { return emu::f32_rcp(a, o); });
}
void f32_sqrt(Warp& w, const Inst& in) {
  map1<float, float>(w, in, [o = options(in)](float a) { return emu::f32_sqrt(a, o); });
}
struct Approximation {
  Approx op;
  bool ftz;
};
void f32_approx(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<Approximation>();
  uint64_t seed = w.m->approximation_seed();
  if (w.active == kAllLanes)
    return approx_n(m.op, w.reg<float>(in.s[0]), w.reg<float>(in.d[0]), 32, m.ftz, seed);
  map1<float, float>(w, in, [&](float a) { return approx(m.op, a, m.ftz, seed); });
}
struct MinMax {
  bool ftz, nan, xorsign;  // xorsign: of magnitudes, with the product's sign
};
template <bool Max>
void f32_min_max(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<MinMax>();
  auto f = [&](float a, float b) {
    float x = m.xorsign ? std::fabs(a) : a, y = m.xorsign ? std::fabs(b) : b;
    float v = Max ? f32_max(x, y, m.ftz, m.nan) : f32_min(x, y, m.ftz, m.nan);
    return m.xorsign ? std::copysign(v, from_bits(bits(a) ^ bits(b))) : v;
  };
  if (in.sources == 3)
    return map3<float, float, float, float>(
        w, in, [&](float a, float b, float c) { return f(f(a, b), c); });
  map2<float, float, float>(w, in, f);
}
void f32_neg(Warp& w, const Inst& in) {
  map1<u32, float>(
      w, in, [ftz = options(in).ftz](float a) { return bits(ftz ? flush(a) : a) ^ 0x80000000u; });
}
void f32_abs(Warp& w, const Inst& in) {
  map1<u32, float>(
      w, in, [ftz = options(in).ftz](float a) { return bits(ftz ? flush(a) : a) & 0x7fffffffu; });
}
template <typename T>
void copysign(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [](T a, T b) { return std::copysign(b, a); });
}

// f64: the host's arithmetic in the wanted rounding mode.
struct RoundingScope {
  explicit RoundingScope(Round r) {
    static constexpr int kModes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    if (r != Round::rna) std::fesetround(kModes[static_cast<int>(r)]);
  }
  ~RoundingScope() { std::fesetround(FE_TONEAREST); }
};
// One NaN, signalling or not, gives the other operand; -0 is less than +0.
double f64_extreme(double a, double b, bool max) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
  bool less = a == b ? std::signbit(a) && !std::signbit(b) : a < b;
  return less == max ? b : a;
}
enum class F64 { add, sub, mul, fma, div, rcp, sqrt, min, max, neg, abs, rsqrt };
template <F64 Op>
[[gnu::optimize("rounding-math")]] void f64(Warp& w, const Inst& in) {
  const double* s[3] = {};
  for (int i = 0; i < in.sources; ++i) s[i] = w.reg<double>(in.s[i]);
  double* d = w.reg<double>(in.d[0]);
  RoundingScope scope(in.modifiers.as<Round>());
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    volatile double a = s[0][i], b = in.sources > 1 ? s[1][i] : 0, c = in.sources > 2 ? s[2][i] : 0,
                    v = 0;
    if constexpr (Op == F64::add) v = a + b;
    if constexpr (Op == F64::sub) v = a - b;
    if constexpr (Op == F64::mul) v = a * b;
    if constexpr (Op == F64::fma) v = std::fma(a, b, c);
    if constexpr (Op == F64::div) v = a / b;
    if constexpr (Op == F64::rcp) v = 1.0 / a;
    if constexpr (Op == F64::sqrt) v = std::sqrt(a);
    if constexpr (Op == F64::min) v = f64_extreme(a, b, false);
    if constexpr (Op == F64::max) v = f64_extreme(a, b, true);
    if constexpr (Op == F64::neg) v = -a;
    if constexpr (Op == F64::abs) v = std::fabs(a);
    if constexpr (Op == F64::rsqrt) v = 1.0 / std::sqrt(a);
    d[i] = v;
  }
}

// f16 and bf16, one or two in a register.
struct HalfArithmetic {
  Format format;
  bool packed;
  HalfOp op;
  HalfOptions options;
};
void half(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<HalfArithmetic>();
  if (m.packed) {
    const u32 *a = w.reg<u32>(in.s[0]), *b = w.reg<u32>(in.s[1]),
              *c = in.sources > 2 ? w.reg<u32>(in.s[2]) : a;
    each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int i) {
      u32 lo = half_op(m.format, m.op, u16(a[i]), u16(b[i]), u16(c[i]), m.options);
      u32 hi =
          half_op(m.format, m.op, u16(a[i] >> 16), u16(b[i] >> 16), u16(c[i] >> 16), m.options);
      return lo | hi << 16;
    });
  } else {
    const u16 *a = w.reg<u16>(in.s[0]), *b = w.reg<u16>(in.s[1]),
              *c = in.sources > 2 ? w.reg<u16>(in.s[2]) : a;
    each_lane<u16>(w, w.reg<u16>(in.d[0]),
                   [&](int i) { return half_op(m.format, m.op, a[i], b[i], c[i], m.options); });
  }
}
struct HalfSign {
  bool packed, absolute;  // absolute: abs, else neg
};
void half_sign(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<HalfSign>();
  if (m.packed)
    map1<u32, u32>(w, in, [m](u32 a) { return m.absolute ? a & 0x7fff7fffu : a ^ 0x80008000u; });
  else map1<u16, u16>(w, in, [m](u16 a) { return u16(m.absolute ? a & 0x7fff : a ^ 0x8000); });
}
struct HalfApproximation {
  Format format;
  bool packed;
  Approx op;
};
void half_approx(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<HalfApproximation>();
  uint64_t seed = w.m->approximation_seed();
  auto f = [&](u16 a) { return approx_half(m.op, m.format, a, seed); };
  if (m.packed)
    map1<u32, u32>(w, in, [&](u32 a) { return u32(f(u16(a))) | u32(f(u16(a >> 16))) << 16; });
  else map1<u16, u16>(w, in, f);
}

enum class Property : uint8_t { finite, infinite, number, not_a_number, normal, subnormal };
template <typename T>
void testp(Warp& w, const Inst& in) {
  const T* a = w.reg<T>(in.s[0]);
  u32 v = 0;
  for (int i = 0; i < 32; ++i) {
    int c = std::fpclassify(a[i]);
    auto has = [&](Property p) {
      switch (p) {
        case Property::finite:
          return c != FP_NAN && c != FP_INFINITE;
        case Property::infinite:
          return c == FP_INFINITE;
        case Property::number:
          return c != FP_NAN;
        case Property::not_a_number:
          return c == FP_NAN;
        case Property::normal:
          return c == FP_NORMAL;
        default:
          return c == FP_SUBNORMAL;
      }
    };
    v |= u32(has(in.modifiers.as<Property>())) << i;
  }
  w.set_predicate(in.d[0], v);
}

// Number of sources; 0 for opcodes that are not here.
int sources_of(const std::string& op) {
  static constexpr struct {
    const char* name;
    int sources;
  } kOps[] = {{"add", 2}, {"sub", 2}, {"mul", 2},  {"fma", 3},      {"mad", 3},
              {"div", 2}, {"rcp", 1}, {"sqrt", 1}, {"rsqrt", 1},    {"ex2", 1},
              {"lg2", 1}, {"sin", 1}, {"cos", 1},  {"tanh", 1},     {"min", 2},
              {"max", 2}, {"neg", 1}, {"abs", 1},  {"copysign", 2}, {"testp", 1}};
  for (const auto& k : kOps)
    if (op == k.name) return k.sources;
  return 0;
}

struct Parsed {  // the modifiers of all types
  Round round = Round::rn;
  bool approximate = false, full = false, ftz = false, sat = false, nan = false, xorsign = false,
       relu = false;
};

Parsed take_modifiers(Decoder& d) {
  Parsed p;
  if (int round = d.take_one("rn rz rm rp"); round > 0) p.round = static_cast<Round>(round);
  p.approximate = d.take("approx"), p.full = d.take("full");
  p.ftz = d.take("ftz"), p.sat = d.take("sat"), p.nan = d.take("NaN"),
  p.xorsign = d.take("xorsign");
  if (p.xorsign && !d.take("abs")) d.unsupported();
  p.relu = d.take("relu");
  return p;
}

void decode_f32(Decoder& d, const Parsed& p) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  static constexpr struct {
    const char* name;
    Handler exact;
  } kArithmetic[] = {{"add", f32_add},
                     {"sub", f32_sub},
                     {"mul", f32_mul},
                     {"fma", f32_fma},
                     {"mad", f32_fma},
                     {"div", f32_div},
                     {"rcp", f32_rcp},
                     {"sqrt", f32_sqrt},
                     {"neg", f32_neg},
                     {"abs", f32_abs},
                     {"copysign", copysign<float>}};
  static constexpr struct {
    const char* name;
    Approx op;
  } kApprox[] = {{"ex2", Approx::ex2},     {"lg2", Approx::lg2},   {"rcp", Approx::rcp},
                 {"rsqrt", Approx::rsqrt}, {"sqrt", Approx::sqrt}, {"sin", Approx::sin},
                 {"cos", Approx::cos},     {"tanh", Approx::tanh}};
  if (p.relu) d.unsupported("relu");
  if (op == "min" || op == "max") {
    out.run = op == "max" ? f32_min_max<true> : f32_min_max<false>;
    return out.modifiers.store(MinMax{p.ftz, p.nan, p.xorsign});
  }
  if (op == "div" && (p.approximate || p.full)) {
    out.run = f32_div_approx;
    return out.modifiers.store(ApproxDivision{p.full, p.ftz});
  }
  if (p.approximate)
    for (const auto& k : kApprox)
      if (op == k.name) {
        out.run = f32_approx;
        return out.modifiers.store(Approximation{k.op, p.ftz});
      }
  for (const auto& k : kArithmetic)
    if (op == k.name) out.run = k.exact;
  out.modifiers.store(F32Options{p.round, p.ftz, p.sat});
}

void decode_f64(Decoder& d, const Parsed& p) {
  static constexpr struct {
    const char* name;
    Handler run;
  } kHandlers[] = {
      {"add", f64<F64::add>},     {"sub", f64<F64::sub>},        {"mul", f64<F64::mul>},
      {"fma", f64<F64::fma>},     {"mad", f64<F64::fma>},        {"div", f64<F64::div>},
      {"rcp", f64<F64::rcp>},     {"sqrt", f64<F64::sqrt>},      {"min", f64<F64::min>},
      {"max", f64<F64::max>},     {"neg", f64<F64::neg>},        {"abs", f64<F64::abs>},
      {"rsqrt", f64<F64::rsqrt>}, {"copysign", copysign<double>}};
  for (const auto& k : kHandlers)
    if (d.in->opcode == k.name) d.out->run = k.run;
  d.out->modifiers.store(p.round);
}

void decode_half(Decoder& d, const Parsed& p, const Type& t, int sources) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  Format format = t.is_bf16() ? Format::bf16 : Format::f16;
  if ((p.xorsign || sources == 3) && op != "fma") d.unsupported();
  static constexpr const char* kNames[] = {"add", "sub", "mul", "fma", "min", "max"};
  for (u32 i = 0; i < 6; ++i)
    if (op == kNames[i]) {
      out.run = half;
      out.modifiers.store(HalfArithmetic{
          format, t.is_packed(), static_cast<HalfOp>(i), {p.ftz, p.sat, p.relu, p.nan}});
    }
  if (op == "neg" || op == "abs") {
    out.run = half_sign;
    out.modifiers.store(HalfSign{t.is_packed(), op == "abs"});
  }
  if (op == "ex2" || op == "tanh") {
    out.run = half_approx;
    out.modifiers.store(
        HalfApproximation{format, t.is_packed(), op == "ex2" ? Approx::ex2 : Approx::tanh});
  }
}

}  // namespace

bool decode_float(Decoder& d) {
  const std::string& op = d.in->opcode;
  int sources = sources_of(op);
  if (!sources) return false;
  Inst& out = *d.out;
  int test = op == "testp" ? d.take_one("finite infinite number notanumber normal subnormal") : -1;
  Parsed p = take_modifiers(d);
  Type t = d.take_type();
  if (d.take("b16") || d.take("b32")) d.unsupported();
  d.finish();
  out.propagates = true;
  if ((op == "min" || op == "max") && d.operands() == 4) sources = 3;
  if (op == "testp") {
    if (t.bits < 32 || test < 0) d.unsupported();
    out.modifiers.store(static_cast<Property>(test));
    out.run = t.bits == 64 ? testp<double> : testp<float>;
  } else if (t.kind == Kind::real && t.bits == 32) {
    decode_f32(d, p);
  } else if (t.kind == Kind::real && t.bits == 64) {
    decode_f64(d, p);
  } else if (t.bits == 16 || t.is_packed()) {
    decode_half(d, p, t, sources);
  }
  if (!out.run) d.unsupported();
  d.add_target(0, op == "testp" ? 1 : t.bits);
  for (int i = 1; i <= sources; ++i)
    d.add_source(static_cast<size_t>(i), t.bits, t.kind == Kind::real);
  return true;
}

}  // namespace l4k::emu
