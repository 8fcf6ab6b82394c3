// Integer arithmetic.
#include <bit>
#include <limits>
#include <type_traits>

#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "machine/isa/operations.h"

namespace l4k::emu {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using u128 = unsigned __int128;
using s128 = __int128;

template <typename T>
struct Wider;
template <>
struct Wider<u16> {
  using type = u32;
};
template <>
struct Wider<s16> {
  using type = s32;
};
template <>
struct Wider<u32> {
  using type = u64;
};
template <>
struct Wider<s32> {
  using type = s64;
};
template <>
struct Wider<u64> {
  using type = u128;
};
template <>
struct Wider<s64> {
  using type = s128;
};
template <typename T>
using wider = typename Wider<T>::type;

template <typename T>
void add(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in,
                [](T a, T b) { return unsigned_of<T>(unsigned_of<T>(a) + unsigned_of<T>(b)); });
}
template <typename T>
void sub(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in,
                [](T a, T b) { return unsigned_of<T>(unsigned_of<T>(a) - unsigned_of<T>(b)); });
}
template <typename T>
void mul_lo(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in,
                [](T a, T b) { return T(unsigned_of<wider<T>>(a) * unsigned_of<wider<T>>(b)); });
}
template <typename T>
void mul_hi(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [](T a, T b) { return T((wider<T>(a) * wider<T>(b)) >> (8 * sizeof(T))); });
}
template <typename T>
void mul_wide(Warp& w, const Inst& in) {
  map2<wider<T>, T, T>(w, in, [](T a, T b) { return wider<T>(a) * wider<T>(b); });
}
template <typename T>
void mad_lo(Warp& w, const Inst& in) {
  map3<T, T, T, T>(w, in, [](T a, T b, T c) {
    return T(unsigned_of<wider<T>>(a) * unsigned_of<wider<T>>(b) + unsigned_of<wider<T>>(c));
  });
}
template <typename T>
void mad_hi(Warp& w, const Inst& in) {
  map3<T, T, T, T>(w, in, [](T a, T b, T c) {
    return T(unsigned_of<T>((wider<T>(a) * wider<T>(b)) >> (8 * sizeof(T))) + unsigned_of<T>(c));
  });
}
template <typename T>
void mad_wide(Warp& w, const Inst& in) {
  map3<wider<T>, T, T, wider<T>>(w, in, [](T a, T b, wider<T> c) {
    return wider<T>(unsigned_of<wider<T>>(wider<T>(a) * wider<T>(b)) + unsigned_of<wider<T>>(c));
  });
}
// Division by zero gives an unspecified value on the GPU: all ones here.
template <typename T>
void div(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [](T a, T b) -> T {
    if (b == 0) return T(-1);
    if (std::is_signed_v<T> && b == T(-1)) return T(0 - unsigned_of<T>(a));
    return T(a / b);
  });
}
template <typename T>
void rem(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [](T a, T b) -> T {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == T(-1)) return 0;
    return T(a % b);
  });
}
struct MinMax {
  bool relu;
};
template <typename T>
void min(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [relu = in.modifiers.as<MinMax>().relu](T a, T b) {
    T v = a < b ? a : b;
    return relu && v < T(0) ? T(0) : v;
  });
}
template <typename T>
void max(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [relu = in.modifiers.as<MinMax>().relu](T a, T b) {
    T v = a > b ? a : b;
    return relu && v < T(0) ? T(0) : v;
  });
}
template <typename T>
void abs(Warp& w, const Inst& in) {
  map1<T, T>(w, in, [](T a) { return T(a < 0 ? 0 - unsigned_of<T>(a) : unsigned_of<T>(a)); });
}
template <typename T>
void neg(Warp& w, const Inst& in) {
  map1<T, T>(w, in, [](T a) { return T(0 - unsigned_of<T>(a)); });
}
template <typename T>
void sad(Warp& w, const Inst& in) {
  map3<T, T, T, T>(w, in, [](T a, T b, T c) {
    return T(unsigned_of<T>(c) + (a > b ? unsigned_of<T>(a) - unsigned_of<T>(b)
                                        : unsigned_of<T>(b) - unsigned_of<T>(a)));
  });
}
struct DotProduct {
  bool a_signed, b_signed;
};
void dp4a(Warp& w, const Inst& in) {
  map3<u32, u32, u32, u32>(w, in, [m = in.modifiers.as<DotProduct>()](u32 a, u32 b, u32 c) {
    for (u32 i = 0; i < 4; ++i) {
      u32 x = a >> (8 * i) & 255, y = b >> (8 * i) & 255;
      c += (m.a_signed ? u32(s32(int8_t(x))) : x) * (m.b_signed ? u32(s32(int8_t(y))) : y);
    }
    return c;
  });
}
// The carry of a subtraction is its borrow.
struct Carry {
  bool subtract, in, out;
};
template <typename T>
void carry(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<Carry>();
  const T *a = w.reg<T>(in.s[0]), *b = w.reg<T>(in.s[1]);
  T* d = w.reg<T>(in.d[0]);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    T c = m.in ? w.carry >> i & 1 : 0;
    u128 v = m.subtract ? u128(a[i]) - b[i] - c : u128(a[i]) + b[i] + c;
    d[i] = T(v);
    if (m.out) w.carry = (w.carry & ~(1u << i)) | u32(v >> (8 * sizeof(T)) & 1) << i;
  }
}

constexpr Operation kOperations[] = {
    {"add", {2}, L4K_BY_TYPE(add)},
    {"sub", {2}, L4K_BY_TYPE(sub)},
    {"mul.lo", {2}, L4K_BY_TYPE(mul_lo)},
    {"mul.hi", {2}, L4K_BY_TYPE(mul_hi)},
    {"mul.wide", {2, Width::twice}, L4K_16_32(mul_wide)},
    {"mad.lo", {3}, L4K_BY_TYPE(mad_lo)},
    {"mad.hi", {3}, L4K_BY_TYPE(mad_hi)},
    {"mad.wide", {3, Width::twice, Width::type, Width::twice}, L4K_16_32(mad_wide)},
    {"div", {2}, L4K_BY_TYPE(div)},
    {"rem", {2}, L4K_BY_TYPE(rem)},
    {"min", {2}, L4K_BY_TYPE(min)},
    {"max", {2}, L4K_BY_TYPE(max)},
    {"abs", {1}, L4K_BY_TYPE(abs)},
    {"neg", {1}, L4K_BY_TYPE(neg)},
    {"sad", {3}, L4K_BY_TYPE(sad)}};
constexpr Operation kCarry = {"addc", {2}, L4K_32_64_BITS(carry)};

bool decode_dp4a(Decoder& d) {
  bool a = d.take_type().is_signed();
  bool b = d.try_type().value_or(Type{}).is_signed() || (a && d.in->mods.size() == 1);
  d.out->modifiers.store(DotProduct{a, b});
  return finish_operation(d, dp4a, kB32, {3});
}

}  // namespace

bool decode_integer(Decoder& d) {
  const std::string& op = d.in->opcode;
  if (op == "dp4a") return decode_dp4a(d);
  bool with_carry = op == "addc" || op == "subc", has_part = op == "mul" || op == "mad";
  if (!find_operation(kOperations, has_part ? op + ".lo" : op) && !with_carry) return false;
  if (d.peek_type().is_float()) return false;
  static constexpr const char* kParts[] = {"", ".lo", ".hi", ".wide"};
  std::string part = kParts[has_part ? d.take_one("lo hi wide") + 1 : 0];
  bool carry_out = d.take("cc"), sat = d.take("sat");
  if (op == "min" || op == "max") d.out->modifiers.store(MinMax{d.take("relu")});
  Type t = d.take_type();
  if (sat || t.bits == 128) d.unsupported("sat");
  if (carry_out || with_carry) {
    d.out->modifiers.store(Carry{op[0] == 's', with_carry, carry_out});
    return finish_operation(d, kCarry.handler(t), t, kCarry.form);
  }
  const Operation* operation = find_operation(kOperations, op + part);
  return finish_operation(d, operation ? operation->handler(t) : nullptr, t,
                          operation ? operation->form : Form{});
}

}  // namespace l4k::emu
