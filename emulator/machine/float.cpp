// Floating-point arithmetic.
#include <bit>
#include <cfenv>
#include <cmath>

#include "machine/decode.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;

F32Options options(const Inst& in) {
  return {static_cast<Round>(in.a & 7), (in.a & 8) != 0, (in.a & 16) != 0};
}
bool plain(const Inst& in) { return (in.a & ~8u) == 0; }  // rn, no saturation
bool full(const Warp& w) { return w.active == kAllLanes; }

void f32_add(Warp& w, const Inst& in) {
  if (plain(in) && full(w))
    return f32_add_n(w.reg<float>(in.s[0]), w.reg<float>(in.s[1]), w.reg<float>(in.d[0]), 32,
                     in.a & 8);
  map2<float, float, float>(w, in,
                            [o = options(in)](float a, float b) { return emu::f32_add(a, b, o); });
}
void f32_sub(Warp& w, const Inst& in) {
  map2<float, float, float>(w, in,
                            [o = options(in)](float a, float b) { return emu::f32_sub(a, b, o); });
}
void f32_mul(Warp& w, const Inst& in) {
  if (plain(in) && full(w))
    return f32_mul_n(w.reg<float>(in.s[0]), w.reg<float>(in.s[1]), w.reg<float>(in.d[0]), 32,
                     in.a & 8);
  map2<float, float, float>(w, in,
                            [o = options(in)](float a, float b) { return emu::f32_mul(a, b, o); });
}
void f32_fma(Warp& w, const Inst& in) {
  if (plain(in) && full(w))
    return f32_fma_n(w.reg<float>(in.s[0]), w.reg<float>(in.s[1]), w.reg<float>(in.s[2]),
                     w.reg<float>(in.d[0]), 32, in.a & 8);
  map3<float, float, float, float>(
      w, in, [o = options(in)](float a, float b, float c) { return emu::f32_fma(a, b, c, o); });
}
void f32_div(Warp& w, const Inst& in) {
  map2<float, float, float>(w, in,
                            [o = options(in)](float a, float b) { return emu::f32_div(a, b, o); });
}
void f32_div_approx(Warp& w, const Inst& in) {
  uint64_t seed = w.m->approximation_seed();
  map2<float, float, float>(
      w, in, [&](float a, float b) { return approx_div(a, b, in.b != 0, (in.a & 8) != 0, seed); });
}
void f32_rcp(Warp& w, const Inst& in) {
  map1<float, float>(w, in, [o = options(in)](float a) { return emu::f32_rcp(a, o); });
}
void f32_sqrt(Warp& w, const Inst& in) {
  map1<float, float>(w, in, [o = options(in)](float a) { return emu::f32_sqrt(a, o); });
}
void f32_approx(Warp& w, const Inst& in) {
  auto op = static_cast<Approx>(in.b);
  uint64_t seed = w.m->approximation_seed();
  if (full(w))
    return approx_n(op, w.reg<float>(in.s[0]), w.reg<float>(in.d[0]), 32, (in.a & 8) != 0, seed);
  map1<float, float>(w, in, [&](float a) { return approx(op, a, (in.a & 8) != 0, seed); });
}
template <bool Max>
void f32_extreme(Warp& w, const Inst& in) {  // in.b: NaN, in.c: operands
  bool ftz = (in.a & 8) != 0, nan = in.b & 1, magnitude = in.b & 2;
  auto f = [&](float a, float b) {
    float v = Max ? f32_max(magnitude ? std::fabs(a) : a, magnitude ? std::fabs(b) : b, ftz, nan)
                  : f32_min(magnitude ? std::fabs(a) : a, magnitude ? std::fabs(b) : b, ftz, nan);
    return magnitude ? std::copysign(v, from_bits(bits(a) ^ bits(b))) : v;
  };
  if (in.sources == 3)
    return map3<float, float, float, float>(
        w, in, [&](float a, float b, float c) { return f(f(a, b), c); });
  map2<float, float, float>(w, in, f);
}
void f32_neg(Warp& w, const Inst& in) {
  map1<u32, float>(w, in,
                   [ftz = in.a & 8](float a) { return bits(ftz ? flush(a) : a) ^ 0x80000000u; });
}
void f32_abs(Warp& w, const Inst& in) {
  map1<u32, float>(w, in,
                   [ftz = in.a & 8](float a) { return bits(ftz ? flush(a) : a) & 0x7fffffffu; });
}
template <typename T>
void copysign(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [](T a, T b) { return std::copysign(b, a); });
}

// f64: the host's arithmetic in the wanted rounding mode.
struct RoundingScope {
  explicit RoundingScope(u32 r) {
    static constexpr int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    if (r < 4) std::fesetround(modes[r]);
  }
  ~RoundingScope() { std::fesetround(FE_TONEAREST); }
};
template <int Op>
[[gnu::optimize("rounding-math")]] void f64(Warp& w, const Inst& in) {
  const double* s[3] = {};
  for (int i = 0; i < in.sources; ++i) s[i] = w.reg<double>(in.s[i]);
  double* d = w.reg<double>(in.d[0]);
  RoundingScope scope(in.a & 7);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    volatile double a = s[0][i], b = in.sources > 1 ? s[1][i] : 0, c = in.sources > 2 ? s[2][i] : 0,
                    v = 0;
    switch (Op) {
      case 0:
        v = a + b;
        break;
      case 1:
        v = a - b;
        break;
      case 2:
        v = a * b;
        break;
      case 3:
        v = std::fma(a, b, c);
        break;
      case 4:
        v = a / b;
        break;
      case 5:
        v = 1.0 / a;
        break;
      case 6:
        v = std::sqrt(a);
        break;
      case 7:
        v = std::fmin(a, b);
        break;
      case 8:
        v = std::fmax(a, b);
        break;
      case 9:
        v = -a;
        break;
      case 10:
        v = std::fabs(a);
        break;
      case 11:
        v = 1.0 / std::sqrt(a);
        break;
    }
    d[i] = v;
  }
}

HalfOptions half_options(const Inst& in) {
  return {(in.a & 8) != 0, (in.a & 16) != 0, (in.b & 4) != 0, (in.b & 1) != 0};
}
// in.c: bit 0 bf16, bit 1 packed, above: HalfOp.
void half(Warp& w, const Inst& in) {
  Format f = in.c & 1 ? Format::bf16 : Format::f16;
  auto op = static_cast<HalfOp>(in.c >> 2);
  HalfOptions o = half_options(in);
  if (in.c & 2) {
    const u32 *a = w.reg<u32>(in.s[0]), *b = w.reg<u32>(in.s[1]),
              *c = in.sources > 2 ? w.reg<u32>(in.s[2]) : a;
    each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int i) {
      u32 lo = half_op(f, op, u16(a[i]), u16(b[i]), u16(c[i]), o);
      u32 hi = half_op(f, op, u16(a[i] >> 16), u16(b[i] >> 16), u16(c[i] >> 16), o);
      return lo | hi << 16;
    });
  } else {
    const u16 *a = w.reg<u16>(in.s[0]), *b = w.reg<u16>(in.s[1]),
              *c = in.sources > 2 ? w.reg<u16>(in.s[2]) : a;
    each_lane<u16>(w, w.reg<u16>(in.d[0]),
                   [&](int i) { return half_op(f, op, a[i], b[i], c[i], o); });
  }
}
void half_sign(Warp& w, const Inst& in) {  // in.b: 0 neg, 1 abs
  if (in.c & 2)
    map1<u32, u32>(w, in, [abs = in.b](u32 a) { return abs ? a & 0x7fff7fffu : a ^ 0x80008000u; });
  else map1<u16, u16>(w, in, [abs = in.b](u16 a) { return u16(abs ? a & 0x7fff : a ^ 0x8000); });
}
void half_approx(Warp& w, const Inst& in) {
  Format f = in.c & 1 ? Format::bf16 : Format::f16;
  auto op = static_cast<Approx>(in.b);
  uint64_t seed = w.m->approximation_seed();
  if (in.c & 2)
    map1<u32, u32>(w, in, [&](u32 a) {
      return u32(approx_half(op, f, u16(a), seed)) | u32(approx_half(op, f, u16(a >> 16), seed))
                                                         << 16;
    });
  else map1<u16, u16>(w, in, [&](u16 a) { return approx_half(op, f, a, seed); });
}
void testp(Warp& w, const Inst& in) {
  const float* a = w.reg<float>(in.s[0]);
  u32 v = 0;
  for (int i = 0; i < 32; ++i) {
    int c = std::fpclassify(a[i]);
    bool r = in.a == 0   ? std::isfinite(a[i])
             : in.a == 1 ? std::isinf(a[i])
             : in.a == 2 ? c != FP_NAN
             : in.a == 3 ? c == FP_NAN
             : in.a == 4 ? c == FP_NORMAL
                         : c == FP_SUBNORMAL;
    v |= u32(r) << i;
  }
  u32& d = *w.reg<u32>(in.d[0]);
  d = (d & ~w.active) | (v & w.active);
}

}  // namespace

bool decode_float(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  static constexpr struct {
    const char* name;
    int sources;
  } kOps[] = {{"add", 2}, {"sub", 2}, {"mul", 2},  {"fma", 3},      {"mad", 3},
              {"div", 2}, {"rcp", 1}, {"sqrt", 1}, {"rsqrt", 1},    {"ex2", 1},
              {"lg2", 1}, {"sin", 1}, {"cos", 1},  {"tanh", 1},     {"min", 2},
              {"max", 2}, {"neg", 1}, {"abs", 1},  {"copysign", 2}, {"testp", 1}};
  int sources = 0;
  for (const auto& k : kOps)
    if (op == k.name) sources = k.sources;
  if (!sources) return false;
  int test = op == "testp" ? d.take_one("finite infinite number notanumber normal subnormal") : -1;
  int round = d.take_one("rn rz rm rp");
  bool approximate = d.take("approx"), full_range = d.take("full");
  bool ftz = d.take("ftz"), sat = d.take("sat"), nan = d.take("NaN"), magnitude = d.take("xorsign");
  if (magnitude && !d.take("abs")) d.unsupported();
  bool relu = d.take("relu");
  Type t = d.take_type();
  if (d.take("b16") || d.take("b32")) d.unsupported();
  d.finish();
  out.propagates = true;
  out.a = static_cast<u32>(round < 0 ? 0 : round) | (ftz ? 8u : 0) | (sat ? 16u : 0);
  out.b = (nan ? 1u : 0) | (magnitude ? 2u : 0) | (relu ? 4u : 0);
  if ((op == "min" || op == "max") && d.operands() == 4) sources = 3;
  if (op == "testp") {
    if (t.bits != 32 || test < 0) d.unsupported();
    out.a = static_cast<u32>(test);
    out.run = testp;
  } else if (t.kind == Kind::real && t.bits == 32) {
    static constexpr struct {
      const char* name;
      Approx op;
    } kApprox[] = {{"ex2", Approx::ex2},     {"lg2", Approx::lg2},   {"rcp", Approx::rcp},
                   {"rsqrt", Approx::rsqrt}, {"sqrt", Approx::sqrt}, {"sin", Approx::sin},
                   {"cos", Approx::cos},     {"tanh", Approx::tanh}};
    if (op == "add") out.run = f32_add;
    else if (op == "sub") out.run = f32_sub;
    else if (op == "mul") out.run = f32_mul;
    else if (op == "fma" || op == "mad") out.run = f32_fma;
    else if (op == "div" && (approximate || full_range))
      out.run = f32_div_approx, out.b = full_range;
    else if (op == "div") out.run = f32_div;
    else if (op == "min") out.run = f32_extreme<false>;
    else if (op == "max") out.run = f32_extreme<true>;
    else if (op == "neg") out.run = f32_neg;
    else if (op == "abs") out.run = f32_abs;
    else if (op == "copysign") out.run = copysign<float>;
    else if (op == "rcp" && !approximate) out.run = f32_rcp;
    else if (op == "sqrt" && !approximate) out.run = f32_sqrt;
    else if (approximate) {
      for (const auto& k : kApprox)
        if (op == k.name) out.run = f32_approx, out.b = static_cast<u32>(k.op);
    }
    if (relu) d.unsupported("relu");
  } else if (t.kind == Kind::real && t.bits == 64) {
    static constexpr const char* kNames[] = {"add",  "sub", "mul", "fma", "div", "rcp",
                                             "sqrt", "min", "max", "neg", "abs", "rsqrt"};
    static constexpr Handler kHandlers[] = {f64<0>, f64<1>, f64<2>, f64<3>, f64<4>,  f64<5>,
                                            f64<6>, f64<7>, f64<8>, f64<9>, f64<10>, f64<11>};
    for (int i = 0; i < 12; ++i)
      if (op == kNames[i] || (i == 3 && op == "mad")) out.run = kHandlers[i];
    if (op == "copysign") out.run = copysign<double>;
  } else if (t.bits == 16 || t.kind == Kind::packed_f16 || t.kind == Kind::packed_bf16) {
    bool bf = t.kind == Kind::bf16 || t.kind == Kind::packed_bf16;
    out.c = (bf ? 1u : 0) | (t.bits == 32 ? 2u : 0);
    static constexpr const char* kNames[] = {"add", "sub", "mul", "fma", "min", "max"};
    for (u32 i = 0; i < 6; ++i)
      if (op == kNames[i]) out.run = half, out.c |= i << 2;
    if (op == "neg" || op == "abs") out.run = half_sign, out.b = op == "abs";
    if (op == "ex2" || op == "tanh")
      out.run = half_approx, out.b = static_cast<u32>(op == "ex2" ? Approx::ex2 : Approx::tanh);
    if (magnitude || sources == 3 ? op != "fma" : false) d.unsupported();
  }
  if (!out.run) d.unsupported();
  d.add_target(0, t.bits);
  for (int i = 1; i <= sources; ++i)
    d.add_source(static_cast<size_t>(i), t.bits, t.kind == Kind::real);
  return true;
}

}  // namespace l4k::emu
