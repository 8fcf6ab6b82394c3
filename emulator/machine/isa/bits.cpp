// Logic, shifts and bit fields.
#include <bit>

#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "machine/isa/operations.h"
#include "tensor/packed.h"

namespace l4k::emu {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

template <typename T>
void and_(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [](T a, T b) { return a & b; });
}
template <typename T>
void or_(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [](T a, T b) { return a | b; });
}
template <typename T>
void xor_(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [](T a, T b) { return a ^ b; });
}
template <typename T>
void not_(Warp& w, const Inst& in) {
  map1<T, T>(w, in, [](T a) { return ~a; });
}
template <typename T>
void cnot(Warp& w, const Inst& in) {
  map1<T, T>(w, in, [](T a) { return a == 0; });
}
template <typename T>
void shl(Warp& w, const Inst& in) {
  map2<T, T, u32>(w, in,
                  [](T a, u32 b) { return b >= 8 * sizeof(T) ? T(0) : T(unsigned_of<T>(a) << b); });
}
template <typename T>
void shr(Warp& w, const Inst& in) {
  map2<T, T, u32>(w, in, [](T a, u32 b) {
    if (b >= 8 * sizeof(T)) return std::is_signed_v<T> && a < 0 ? T(-1) : T(0);
    return T(a >> b);
  });
}
enum class Logic { and_, or_, xor_, not_ };
template <Logic Op>
void logic(Warp& w, const Inst& in) {
  u32 a = *w.reg<u32>(in.s[0]), b = Op == Logic::not_ ? 0 : *w.reg<u32>(in.s[1]);
  w.set_predicate(in.d[0], Op == Logic::and_   ? a & b
                           : Op == Logic::or_  ? a | b
                           : Op == Logic::xor_ ? a ^ b
                                               : ~a);
}

struct Lop3 {
  uint8_t table;
};
u32 lop3_value(u32 a, u32 b, u32 c, u32 table) {
  u32 v = 0;
  for (u32 i = 0; i < 8; ++i)
    if (table >> i & 1) v |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return v;
}
void lop3(Warp& w, const Inst& in) {
  map3<u32, u32, u32, u32>(w, in, [t = in.modifiers.as<Lop3>().table](u32 a, u32 b, u32 c) {
    return lop3_value(a, b, c, t);
  });
}
struct FunnelShift {
  bool clamp;  // else wrap
};
template <bool Left>
void shf(Warp& w, const Inst& in) {
  map3<u32, u32, u32, u32>(w, in,
                           [clamp = in.modifiers.as<FunnelShift>().clamp](u32 a, u32 b, u32 c) {
                             u32 n = clamp ? std::min(c, 32u) : c & 31;
                             u64 v = u64{b} << 32 | a;
                             return Left ? u32(v << n >> 32) : u32(v >> n);
                           });
}
void prmt(Warp& w, const Inst& in) {
  map3<u32, u32, u32, u32>(w, in, [m = in.modifiers.as<Permute>()](u32 a, u32 b, u32 c) {
    return prmt_value(a, b, c, m);
  });
}
template <typename T>
void bfe(Warp& w, const Inst& in) {
  map3<T, T, u32, u32>(w, in, [](T a, u32 b, u32 c) {
    u32 pos = b & 255, len = c & 255, width = 8 * sizeof(T),
        last = std::min(pos + len - 1, width - 1);
    bool sign = std::is_signed_v<T> && len && (unsigned_of<T>(a) >> last & 1);
    unsigned_of<T> v = 0;
    for (u32 i = 0; i < width; ++i) {
      bool bit = i < len && pos + i < width ? unsigned_of<T>(a) >> (pos + i) & 1 : sign;
      v |= unsigned_of<T>(bit) << i;
    }
    return T(v);
  });
}
template <typename T>
void bfi(Warp& w, const Inst& in) {
  const T *a = w.reg<T>(in.s[0]), *b = w.reg<T>(in.s[1]);
  const u32 *c = w.reg<u32>(in.s[2]), *n = w.reg<u32>(in.s[3]);
  each_lane<T>(w, w.reg<T>(in.d[0]), [&](int i) {
    u32 pos = c[i] & 255, len = n[i] & 255, width = 8 * sizeof(T);
    T v = b[i];
    for (u32 k = 0; k < len && pos + k < width; ++k)
      v = T((v & ~(T(1) << (pos + k))) | (a[i] >> k & 1) << (pos + k));
    return v;
  });
}
template <typename T>
void brev(Warp& w, const Inst& in) {
  map1<T, T>(w, in, [](T a) {
    T v = 0;
    for (u32 i = 0; i < 8 * sizeof(T); ++i) v |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
    return v;
  });
}
template <typename T>
void popc(Warp& w, const Inst& in) {
  map1<u32, T>(w, in, [](T a) { return u32(std::popcount(a)); });
}
template <typename T>
void clz(Warp& w, const Inst& in) {
  map1<u32, T>(w, in, [](T a) { return u32(std::countl_zero(a)); });
}
struct FindBit {
  bool shift_amount;  // the shift that brings the bit to the top, instead of its position
};
template <typename T>
void bfind(Warp& w, const Inst& in) {
  map1<u32, T>(w, in, [shift = in.modifiers.as<FindBit>().shift_amount](T x) {
    auto a = unsigned_of<T>(std::is_signed_v<T> && x < 0 ? ~x : x);
    if (!a) return ~0u;
    u32 top = 8 * sizeof(T) - 1 - u32(std::countl_zero(a));
    return shift ? 8 * u32(sizeof(T)) - 1 - top : top;
  });
}

constexpr Operation kOperations[] = {
    {"and", {2}, L4K_BY_BITS(and_)},
    {"or", {2}, L4K_BY_BITS(or_)},
    {"xor", {2}, L4K_BY_BITS(xor_)},
    {"not", {1}, L4K_BY_BITS(not_)},
    {"cnot", {1}, L4K_BY_BITS(cnot)},
    {"shl", {2, Width::type, Width::word}, L4K_BY_BITS(shl)},
    {"shr", {2, Width::type, Width::word}, L4K_BY_TYPE(shr)},
    {"bfe", {3, Width::type, Width::word, Width::word}, L4K_32_64(bfe)},
    {"bfi", {4, Width::type, Width::type, Width::word}, L4K_32_64_BITS(bfi)},
    {"brev", {1}, L4K_32_64_BITS(brev)},
    {"popc", {1, Width::word}, L4K_32_64_BITS(popc)},
    {"clz", {1, Width::word}, L4K_32_64_BITS(clz)},
    {"bfind", {1, Width::word}, L4K_32_64(bfind)}};

// d|p: p is whether the result has a bit, combined with another predicate.
struct Lop3Predicate {
  uint8_t table;
  bool conjunction, negated;  // negated: the other predicate
};
void lop3_predicate(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<Lop3Predicate>();
  u32 other = *w.reg<u32>(in.s[3]), any = 0;
  if (m.negated) other = ~other;
  const u32 *a = w.reg<u32>(in.s[0]), *b = w.reg<u32>(in.s[1]), *c = w.reg<u32>(in.s[2]);
  each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int i) {
    u32 v = lop3_value(a[i], b[i], c[i], m.table);
    any |= u32(v != 0) << i;
    return v;
  });
  w.set_predicate(in.d[1], m.conjunction ? any & other : any | other);
}
bool decode_lop3_predicate(Decoder& d, bool conjunction) {
  Inst& out = *d.out;
  d.finish();
  const PtxOperand& to = d.operand(0);
  if (to.kind != PtxOperand::Kind::pair) d.unsupported("no predicate result");
  out.d[out.targets++] = d.target(to.parts[0], 32);
  out.d[out.targets++] = d.target(to.parts[1], 1);
  for (size_t i = 1; i <= 3; ++i) d.add_source(i, 32);
  out.modifiers.store(
      Lop3Predicate{static_cast<uint8_t>(d.literal(4)), conjunction, d.add_predicate(5)});
  out.run = lop3_predicate;
  return true;
}

bool decode_lop3(Decoder& d) {
  d.take("b32");
  int combine = d.take_one("or and");
  d.out->modifiers.store(Lop3{static_cast<uint8_t>(d.literal(4))});
  if (combine >= 0) return decode_lop3_predicate(d, combine == 1);
  return finish_operation(d, lop3, kB32, {3});
}

bool decode_shf(Decoder& d) {
  bool left = d.take_one("l r") == 0;
  d.out->modifiers.store(FunnelShift{d.take_one("wrap clamp") == 1});
  d.take("b32");
  return finish_operation(d, left ? shf<true> : shf<false>, kB32, {3});
}

bool decode_prmt(Decoder& d) {
  d.take("b32");
  d.out->modifiers.store(static_cast<Permute>(d.take_one("f4e b4e rc8 ecl ecr rc16") + 1));
  return finish_operation(d, prmt, kB32, {3});
}

Flow flow_of(const std::string& op) {
  return op == "and" ? Flow::conjunction : op == "or" ? Flow::disjunction : Flow::any;
}

bool decode_predicate(Decoder& d, const Type& t) {
  const std::string& op = d.in->opcode;
  Handler h = op == "and"   ? logic<Logic::and_>
              : op == "or"  ? logic<Logic::or_>
              : op == "xor" ? logic<Logic::xor_>
              : op == "not" ? logic<Logic::not_>
                            : nullptr;
  d.out->flow = flow_of(op);
  return finish_operation(d, h, t, {op == "not" ? 1 : 2});
}

}  // namespace

bool decode_bits(Decoder& d) {
  const std::string& op = d.in->opcode;
  if (op == "lop3") return decode_lop3(d);
  if (op == "shf") return decode_shf(d);
  if (op == "prmt") return decode_prmt(d);
  const Operation* operation = find_operation(kOperations, op);
  if (!operation) return false;
  Type t = d.take_type();
  if (t.kind == Kind::pred) return decode_predicate(d, t);
  d.out->flow = flow_of(op);
  if (op == "bfind") d.out->modifiers.store(FindBit{d.take("shiftamt")});
  return finish_operation(d, operation->handler(t), t, operation->form);
}

}  // namespace l4k::emu
