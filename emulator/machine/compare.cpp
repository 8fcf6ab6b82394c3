// setp, set, selp, slct.
#include <bit>
#include <cmath>

#include "machine/decode.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;

// Comparison operators as setp names them; the unordered ones are true for NaN.
enum Op : u32 { eq, ne, lt, le, gt, ge, lo, ls, hi, hs, equ, neu, ltu, leu, gtu, geu, num, nan };
constexpr const char* kOps = "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan";

template <u32 O, typename T>
bool compare(T a, T b) {
  if constexpr (O == eq) return a == b;
  if constexpr (O == ne) return (a < b) | (a > b);
  if constexpr (O == lt || O == lo) return a < b;
  if constexpr (O == le || O == ls) return a <= b;
  if constexpr (O == gt || O == hi) return a > b;
  if constexpr (O == ge || O == hs) return a >= b;
  if constexpr (O == equ) return !((a < b) | (a > b));
  if constexpr (O == neu) return !(a == b);
  if constexpr (O == ltu) return !(a >= b);
  if constexpr (O == leu) return !(a > b);
  if constexpr (O == gtu) return !(a <= b);
  if constexpr (O == geu) return !(a < b);
  if constexpr (O == num) return a == a && b == b;
  return !(a == a && b == b);
}

template <u32 O, typename T>
u32 compare_lanes(Warp& w, const Inst& in) {
  const T *a = w.reg<T>(in.s[0]), *b = w.reg<T>(in.s[1]);
  u32 v = 0;
  for (int i = 0; i < 32; ++i) v |= u32(compare<O, T>(a[i], b[i])) << i;
  return v;
}
template <u32 O>
u32 compare_f32(Warp& w, const Inst& in) {
  if (!(in.a & 8)) return compare_lanes<O, float>(w, in);
  const float *a = w.reg<float>(in.s[0]), *b = w.reg<float>(in.s[1]);
  u32 v = 0;
  for (int i = 0; i < 32; ++i) v |= u32(compare<O, float>(flush(a[i]), flush(b[i]))) << i;
  return v;
}
// in.c: bit 0 bf16, bit 1 packed (two results).
template <u32 O>
u32 compare_half(Warp& w, const Inst& in, int shift) {
  u32 v = 0;
  for (int i = 0; i < 32; ++i) {
    uint16_t x, y;
    if (in.c & 2)
      x = uint16_t(w.reg<u32>(in.s[0])[i] >> shift), y = uint16_t(w.reg<u32>(in.s[1])[i] >> shift);
    else x = w.reg<uint16_t>(in.s[0])[i], y = w.reg<uint16_t>(in.s[1])[i];
    float a = in.c & 1 ? bf16_to_float(x) : f16_to_float(x),
          b = in.c & 1 ? bf16_to_float(y) : f16_to_float(y);
    v |= u32(compare<O, float>(a, b)) << i;
  }
  return v;
}

u32 combine(Warp& w, const Inst& in, u32 v) {  // in.a bits 0-2: 1 and, 2 or, 3 xor; bit 4: negate
  u32 how = in.a & 3;
  if (!how) return v;
  u32 p = *w.reg<u32>(in.s[2]);
  if (in.a & 16) p = ~p;
  return how == 1 ? v & p : how == 2 ? v | p : v ^ p;
}
void store(Warp& w, const Src& d, u32 v) {
  u32& r = *w.reg<u32>(d);
  r = (r & ~w.active) | (v & w.active);
}
void finish_setp(Warp& w, const Inst& in, u32 v, u32 other) {
  u32 second = in.targets > 1 ? combine(w, in, other) : 0;
  store(w, in.d[0], combine(w, in, v));
  if (in.targets > 1) store(w, in.d[1], second);
}
template <u32 O, typename T>
void setp(Warp& w, const Inst& in) {
  u32 v = std::is_same_v<T, float> ? compare_f32<O>(w, in) : compare_lanes<O, T>(w, in);
  finish_setp(w, in, v, ~v);
}
template <u32 O>
void setp_half(Warp& w, const Inst& in) {
  u32 v = compare_half<O>(w, in, 0);
  finish_setp(w, in, v, in.c & 2 ? compare_half<O>(w, in, 16) : ~v);
}
template <u32 O, typename T>
void set(Warp& w, const Inst& in) {  // in.b: result is 1.0f
  u32 v =
      combine(w, in, std::is_same_v<T, float> ? compare_f32<O>(w, in) : compare_lanes<O, T>(w, in));
  u32 yes = in.b ? 0x3f800000u : ~0u;
  each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int i) { return v >> i & 1 ? yes : 0; });
}
template <u32 O>
void set_half(Warp& w, const Inst& in) {  // in.b: float result
  u32 low = compare_half<O>(w, in, 0), high = in.c & 2 ? compare_half<O>(w, in, 16) : 0;
  u32 one = !in.b ? 0xffff : in.c & 1 ? 0x3f80 : 0x3c00;
  if (in.c & 2)
    each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int i) {
      return (low >> i & 1 ? one : 0) | (high >> i & 1 ? one << 16 : 0);
    });
  else
    each_lane<uint16_t>(w, w.reg<uint16_t>(in.d[0]),
                        [&](int i) { return uint16_t(low >> i & 1 ? one : 0); });
}
template <typename T>
void selp(Warp& w, const Inst& in) {
  const T *a = w.reg<T>(in.s[0]), *b = w.reg<T>(in.s[1]);
  u32 p = *w.reg<u32>(in.s[2]);
  each_lane<T>(w, w.reg<T>(in.d[0]), [&](int i) { return p >> i & 1 ? a[i] : b[i]; });
}
template <typename T, bool Float>
void slct(Warp& w, const Inst& in) {
  const T *a = w.reg<T>(in.s[0]), *b = w.reg<T>(in.s[1]);
  each_lane<T>(w, w.reg<T>(in.d[0]), [&](int i) {
    bool first = Float ? w.reg<float>(in.s[2])[i] >= 0.f : w.reg<int32_t>(in.s[2])[i] >= 0;
    return first ? a[i] : b[i];
  });
}

template <u32 O>
Handler setp_handler(const Type& t) {
  if (t.kind == Kind::real && t.bits == 32) return setp<O, float>;
  if (t.kind == Kind::real && t.bits == 64) return setp<O, double>;
  if (t.kind == Kind::bf16 || t.kind == Kind::packed_bf16 || t.kind == Kind::packed_f16 ||
      t.kind == Kind::real)
    return setp_half<O>;
  bool s = t.is_signed();
  if (t.bits == 16) return s ? setp<O, int16_t> : setp<O, uint16_t>;
  if (t.bits == 32) return s ? setp<O, int32_t> : setp<O, uint32_t>;
  return s ? setp<O, int64_t> : setp<O, uint64_t>;
}
template <u32 O>
Handler set_handler(const Type& t) {
  if (t.kind == Kind::real && t.bits == 32) return set<O, float>;
  if (t.kind == Kind::real && t.bits == 64) return set<O, double>;
  if (t.kind == Kind::bf16 || t.kind == Kind::packed_bf16 || t.kind == Kind::packed_f16 ||
      t.kind == Kind::real)
    return set_half<O>;
  bool s = t.is_signed();
  if (t.bits == 32) return s ? set<O, int32_t> : set<O, uint32_t>;
  if (t.bits == 64) return s ? set<O, int64_t> : set<O, uint64_t>;
  return nullptr;
}
template <size_t... I>
Handler pick(bool p, u32 op, const Type& t, std::index_sequence<I...>) {
  Handler h = nullptr;
  ((op == I ? (h = p ? setp_handler<I>(t) : set_handler<I>(t), 0) : 0), ...);
  return h;
}

}  // namespace

bool decode_compare(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op != "setp" && op != "set" && op != "selp" && op != "slct") return false;
  out.propagates = true;
  if (op == "selp") {
    Type t = d.take_type();
    d.finish();
    out.run = t.bits == 16 ? selp<uint16_t> : t.bits == 32 ? selp<uint32_t> : selp<uint64_t>;
    d.add_target(0, t.bits), d.add_source(1, t.bits), d.add_source(2, t.bits), d.add_source(3, 1);
    return true;
  }
  if (op == "slct") {
    d.take("ftz");
    Type t = d.take_type(), c = d.take_type();
    d.finish();
    bool f = c.kind == Kind::real;
    out.run = t.bits == 32   ? (f ? slct<u32, true> : slct<u32, false>)
              : t.bits == 64 ? (f ? slct<uint64_t, true> : slct<uint64_t, false>)
                             : nullptr;
    if (!out.run) d.unsupported();
    d.add_target(0, t.bits), d.add_source(1, t.bits), d.add_source(2, t.bits), d.add_source(3, 32);
    return true;
  }
  int how = d.take_one(kOps);
  if (how < 0) d.unsupported("no comparison");
  int bool_op = d.take_one("and or xor");
  bool ftz = d.take("ftz");
  Type result;
  if (op == "set") result = d.take_type();
  Type t = d.take_type();
  d.finish();
  out.a = static_cast<u32>(bool_op + 1) | (ftz ? 8u : 0);
  bool bf = t.kind == Kind::bf16 || t.kind == Kind::packed_bf16;
  out.c = (bf ? 1u : 0) | (t.kind == Kind::packed_bf16 || t.kind == Kind::packed_f16 ? 2u : 0);
  out.b = result.kind == Kind::real || result.kind == Kind::bf16 ||
          result.kind == Kind::packed_bf16 || result.kind == Kind::packed_f16;
  out.run = pick(op == "setp", static_cast<u32>(how), t, std::make_index_sequence<18>());
  if (!out.run || t.bits == 8) d.unsupported();
  const PtxOperand& dst = d.operand(0);
  if (dst.kind == PtxOperand::Kind::pair) {
    out.d[out.targets++] = d.target(dst.parts[0], 1);
    out.d[out.targets++] = d.target(dst.parts[1], 1);
  } else {
    d.add_target(0, op == "setp" ? 1 : result.bits);
  }
  d.add_source(1, t.bits, t.kind == Kind::real), d.add_source(2, t.bits, t.kind == Kind::real);
  if (bool_op >= 0) {
    PtxOperand p = d.operand(3);
    if (p.negated) out.a |= 16;
    p.negated = false;
    out.s[out.sources++] = d.source(p, 1);
  }
  return true;
}

}  // namespace l4k::emu
