// setp, set, selp, slct.
#include <bit>
#include <cmath>

#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
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

// How a comparison combines with the predicate operand, if there is one.
enum class Combine : uint8_t { none, and_, or_, xor_ };
struct Comparison {
  Combine combine;
  bool negated;  // the predicate operand
  bool ftz;
  bool bf16, packed;  // halves: the format; two of them, with two results
  bool float_result;  // of set: 1.0, else all ones
};
const Comparison& comparison(const Inst& in) { return in.modifiers.as<Comparison>(); }

template <u32 O, typename T>
u32 compare_lanes(Warp& w, const Inst& in) {
  const T *a = w.reg<T>(in.s[0]), *b = w.reg<T>(in.s[1]);
  u32 v = 0;
  for (int i = 0; i < 32; ++i) v |= u32(compare<O, T>(a[i], b[i])) << i;
  return v;
}
template <u32 O>
u32 compare_f32(Warp& w, const Inst& in) {
  if (!comparison(in).ftz) return compare_lanes<O, float>(w, in);
  const float *a = w.reg<float>(in.s[0]), *b = w.reg<float>(in.s[1]);
  u32 v = 0;
  for (int i = 0; i < 32; ++i) v |= u32(compare<O, float>(flush(a[i]), flush(b[i]))) << i;
  return v;
}
template <u32 O>
u32 compare_half(Warp& w, const Inst& in, int shift) {
  const Comparison& m = comparison(in);
  auto value = [&](const Reg& r, int i) {
    uint16_t x = m.packed ? uint16_t(w.reg<u32>(r)[i] >> shift) : w.reg<uint16_t>(r)[i];
    return m.bf16 ? bf16_to_float(x) : f16_to_float(x);
  };
  u32 v = 0;
  for (int i = 0; i < 32; ++i)
    v |= u32(compare<O, float>(value(in.s[0], i), value(in.s[1], i))) << i;
  return v;
}

u32 combine(Warp& w, const Inst& in, u32 v) {
  const Comparison& m = comparison(in);
  if (m.combine == Combine::none) return v;
  u32 p = *w.reg<u32>(in.s[2]);
  if (m.negated) p = ~p;
  return m.combine == Combine::and_ ? v & p : m.combine == Combine::or_ ? v | p : v ^ p;
}
void finish_setp(Warp& w, const Inst& in, u32 v, u32 other) {
  u32 second = in.targets > 1 ? combine(w, in, other) : 0;
  w.set_predicate(in.d[0], combine(w, in, v));
  if (in.targets > 1) w.set_predicate(in.d[1], second);
}
template <u32 O, typename T>
void setp(Warp& w, const Inst& in) {
  u32 v = std::is_same_v<T, float> ? compare_f32<O>(w, in) : compare_lanes<O, T>(w, in);
  finish_setp(w, in, v, ~v);
}
template <u32 O>
void setp_half(Warp& w, const Inst& in) {
  u32 v = compare_half<O>(w, in, 0);
  finish_setp(w, in, v, comparison(in).packed ? compare_half<O>(w, in, 16) : ~v);
}
template <u32 O, typename T>
void set(Warp& w, const Inst& in) {
  u32 v =
      combine(w, in, std::is_same_v<T, float> ? compare_f32<O>(w, in) : compare_lanes<O, T>(w, in));
  u32 yes = comparison(in).float_result ? 0x3f800000u : ~0u;
  each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int i) { return v >> i & 1 ? yes : 0; });
}
template <u32 O>
void set_half(Warp& w, const Inst& in) {
  const Comparison& m = comparison(in);
  u32 low = compare_half<O>(w, in, 0), high = m.packed ? compare_half<O>(w, in, 16) : 0;
  u32 one = !m.float_result ? 0xffff : m.bf16 ? 0x3f80 : 0x3c00;
  if (m.packed)
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
  if (t.is_float()) return setp_half<O>;
  bool s = t.is_signed();
  if (t.bits == 16) return s ? setp<O, int16_t> : setp<O, uint16_t>;
  if (t.bits == 32) return s ? setp<O, int32_t> : setp<O, uint32_t>;
  return s ? setp<O, int64_t> : setp<O, uint64_t>;
}
template <u32 O>
Handler set_handler(const Type& t) {
  if (t.kind == Kind::real && t.bits == 32) return set<O, float>;
  if (t.kind == Kind::real && t.bits == 64) return set<O, double>;
  if (t.is_float()) return set_half<O>;
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

bool decode_selp(Decoder& d) {
  Type t = d.take_type();
  d.finish();
  d.out->run = t.bits == 16 ? selp<uint16_t> : t.bits == 32 ? selp<uint32_t> : selp<uint64_t>;
  d.add_target(0, t.bits), d.add_source(1, t.bits), d.add_source(2, t.bits), d.add_source(3, 1);
  d.out->flow = Flow::choice;
  return true;
}

bool decode_slct(Decoder& d) {
  d.take("ftz");
  Type t = d.take_type(), c = d.take_type();
  d.finish();
  bool f = c.kind == Kind::real;
  d.out->flow = f ? Flow::real_sign : Flow::sign;
  d.out->run = t.bits == 32   ? (f ? slct<u32, true> : slct<u32, false>)
               : t.bits == 64 ? (f ? slct<uint64_t, true> : slct<uint64_t, false>)
                              : nullptr;
  if (!d.out->run) d.unsupported();
  d.add_target(0, t.bits), d.add_source(1, t.bits), d.add_source(2, t.bits), d.add_source(3, 32);
  return true;
}

}  // namespace

bool decode_compare(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op != "setp" && op != "set" && op != "selp" && op != "slct") return false;
  out.propagates = true;
  if (op == "selp") return decode_selp(d);
  if (op == "slct") return decode_slct(d);
  int how = d.take_one(kOps);
  if (how < 0) d.unsupported("no comparison");
  Comparison m{};
  m.combine = static_cast<Combine>(d.take_one("and or xor") + 1);
  m.ftz = d.take("ftz");
  Type result;
  if (op == "set") result = d.take_type();
  Type t = d.take_type();
  d.finish();
  m.bf16 = t.is_bf16(), m.packed = t.is_packed();
  m.float_result = result.is_float();
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
  if (m.combine != Combine::none) m.negated = d.add_predicate(3);
  if (op == "setp" && m.combine == Combine::and_)
    out.flow = m.negated ? Flow::and_not : Flow::conjunction;
  if (op == "setp" && m.combine == Combine::or_)
    out.flow = m.negated ? Flow::or_not : Flow::disjunction;
  out.modifiers.store(m);
  return true;
}

}  // namespace l4k::emu
