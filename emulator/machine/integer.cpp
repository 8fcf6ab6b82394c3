// Integer and bit-field arithmetic.
#include <bit>
#include <limits>
#include <type_traits>

#include "machine/decode.h"

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
using unsigned_of = std::make_unsigned_t<T>;

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
template <typename T>
void min(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [relu = in.a](T a, T b) {
    T v = a < b ? a : b;
    return relu && v < T(0) ? T(0) : v;
  });
}
template <typename T>
void max(Warp& w, const Inst& in) {
  map2<T, T, T>(w, in, [relu = in.a](T a, T b) {
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
// Predicates are lane masks.
template <int Op>
void logic(Warp& w, const Inst& in) {
  u32 a = *w.reg<u32>(in.s[0]), b = Op == 3 ? 0 : *w.reg<u32>(in.s[1]);
  u32 v = Op == 0 ? a & b : Op == 1 ? a | b : Op == 2 ? a ^ b : ~a;
  u32& d = *w.reg<u32>(in.d[0]);
  d = (d & ~w.active) | (v & w.active);
}

u32 lop3_value(u32 a, u32 b, u32 c, u32 table) {
  u32 v = 0;
  for (u32 i = 0; i < 8; ++i)
    if (table >> i & 1) v |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return v;
}
void lop3(Warp& w, const Inst& in) {
  map3<u32, u32, u32, u32>(w, in,
                           [t = in.a](u32 a, u32 b, u32 c) { return lop3_value(a, b, c, t); });
}
template <bool Left>
void shf(Warp& w, const Inst& in) {
  map3<u32, u32, u32, u32>(w, in, [clamp = in.a](u32 a, u32 b, u32 c) {
    u32 n = clamp ? std::min(c, 32u) : c & 31;
    u64 v = u64{b} << 32 | a;
    return Left ? u32(v << n >> 32) : u32(v >> n);
  });
}
u32 prmt_value(u32 a, u32 b, u32 c, u32 mode) {
  u64 bytes = u64{b} << 32 | a;
  u32 n = c & 3, d = 0;
  static constexpr uint8_t tables[7][4][4] = {
      {},
      {{0, 1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4, 5}, {3, 4, 5, 6}},   // f4e
      {{0, 7, 6, 5}, {1, 0, 7, 6}, {2, 1, 0, 7}, {3, 2, 1, 0}},   // b4e
      {{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}},   // rc8
      {{0, 1, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {3, 3, 3, 3}},   // ecl
      {{0, 0, 0, 0}, {0, 1, 1, 1}, {0, 1, 2, 2}, {0, 1, 2, 3}},   // ecr
      {{0, 1, 0, 1}, {2, 3, 2, 3}, {0, 1, 0, 1}, {2, 3, 2, 3}}};  // rc16
  for (u32 i = 0; i < 4; ++i) {
    u32 select = mode ? tables[mode][n][i] : c >> (4 * i) & 15;
    u32 byte = u32(bytes >> (8 * (select & 7))) & 0xff;
    if (select & 8) byte = byte & 0x80 ? 0xff : 0;
    d |= byte << (8 * i);
  }
  return d;
}
void prmt(Warp& w, const Inst& in) {
  map3<u32, u32, u32, u32>(w, in,
                           [m = in.a](u32 a, u32 b, u32 c) { return prmt_value(a, b, c, m); });
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
template <typename T>
void bfind(Warp& w, const Inst& in) {
  map1<u32, T>(w, in, [shift = in.a](T x) {
    auto a = unsigned_of<T>(std::is_signed_v<T> && x < 0 ? ~x : x);
    if (!a) return ~0u;
    u32 top = 8 * sizeof(T) - 1 - u32(std::countl_zero(a));
    return shift ? 8 * u32(sizeof(T)) - 1 - top : top;
  });
}
template <int Bytes>
void dot(Warp& w, const Inst& in) {  // dp4a; in.a, in.b: operands are signed
  map3<u32, u32, u32, u32>(w, in, [sa = in.a, sb = in.b](u32 a, u32 b, u32 c) {
    for (u32 i = 0; i < 4; ++i) {
      u32 x = a >> (8 * i) & 255, y = b >> (8 * i) & 255;
      c += (sa ? u32(s32(int8_t(x))) : x) * (sb ? u32(s32(int8_t(y))) : y);
    }
    return c;
  });
}
// in.a: 1 subtract, 2 carry in, 4 carry out. The carry of a subtraction is its borrow.
template <typename T>
void carry(Warp& w, const Inst& in) {
  const T *a = w.reg<T>(in.s[0]), *b = w.reg<T>(in.s[1]);
  T* d = w.reg<T>(in.d[0]);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    T c = in.a & 2 ? w.carry >> i & 1 : 0;
    u128 v = in.a & 1 ? u128(a[i]) - b[i] - c : u128(a[i]) + b[i] + c;
    d[i] = T(v);
    if (in.a & 4) w.carry = (w.carry & ~(1u << i)) | u32(v >> (8 * sizeof(T)) & 1) << i;
  }
}

#define L4K_BY_TYPE(fn)                                 \
  (t.bits == 16   ? (t.is_signed() ? fn<s16> : fn<u16>) \
   : t.bits == 32 ? (t.is_signed() ? fn<s32> : fn<u32>) \
   : t.bits == 64 ? (t.is_signed() ? fn<s64> : fn<u64>) \
                  : nullptr)
#define L4K_BY_BITS(fn) \
  (t.bits == 16 ? fn<u16> : t.bits == 32 ? fn<u32> : t.bits == 64 ? fn<u64> : nullptr)
#define L4K_32_64(fn) (t.bits == 32 ? fn<u32> : t.bits == 64 ? fn<u64> : nullptr)

}  // namespace

bool decode_integer(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  static const char* kOps[] = {"add", "sub",  "mul",  "mad", "mul24", "mad24", "div",  "rem",
                               "min", "max",  "abs",  "neg", "sad",   "and",   "or",   "xor",
                               "not", "cnot", "shl",  "shr", "lop3",  "shf",   "prmt", "bfe",
                               "bfi", "brev", "popc", "clz", "bfind", "dp4a",  "addc", "subc"};
  bool known = false;
  for (const char* k : kOps) known |= op == k;
  if (!known) return false;
  int part = op == "mul" || op == "mad" ? d.take_one("lo hi wide") : -1;
  if (op == "mul24" || op == "mad24") d.unsupported();
  auto finish = [&](Handler h, int sources, uint32_t bits, uint32_t third = 0,
                    uint32_t second = 0) {
    if (!h) d.unsupported();
    d.finish();
    out.run = h;
    out.propagates = true;
    bool counts = op == "popc" || op == "clz" || op == "bfind";
    d.add_target(0, counts ? 32 : part == 2 ? 2 * bits : bits);
    for (int i = 1; i <= sources; ++i)
      d.add_source(static_cast<size_t>(i), i == 2 && second  ? second
                                           : i >= 3 && third ? third
                                                             : bits);
    return true;
  };
  if (op == "lop3") {
    d.take("b32");
    if (d.take("or") || d.take("and")) d.unsupported("predicate result");
    out.a = static_cast<uint32_t>(d.literal(4)) & 255;
    return finish(lop3, 3, 32);
  }
  if (op == "shf") {
    bool left = d.take_one("l r") == 0;
    out.a = d.take_one("wrap clamp") == 1;
    d.take("b32");
    return finish(left ? shf<true> : shf<false>, 3, 32);
  }
  if (op == "prmt") {
    d.take("b32");
    out.a = static_cast<uint32_t>(d.take_one("f4e b4e rc8 ecl ecr rc16") + 1);
    return finish(prmt, 3, 32);
  }
  if (op == "dp4a") {
    out.a = d.take_type().is_signed();
    out.b = d.try_type().value_or(Type{}).is_signed() || (out.a && d.in->mods.size() == 1);
    return finish(dot<4>, 3, 32);
  }
  bool carry_out = d.take("cc");
  bool sat = d.take("sat"), relu = op == "min" || op == "max" ? d.take("relu") : false;
  Type t = d.take_type();
  if (t.kind == Kind::pred) {
    Handler h = op == "and"   ? logic<0>
                : op == "or"  ? logic<1>
                : op == "xor" ? logic<2>
                : op == "not" ? logic<3>
                              : nullptr;
    return finish(h, op == "not" ? 1 : 2, 1);
  }
  if (t.kind == Kind::real || t.kind == Kind::bf16 || t.kind == Kind::packed_f16 ||
      t.kind == Kind::packed_bf16)
    return false;  // the float decoder starts again
  if (sat || t.bits == 128) d.unsupported("sat");
  if (d.take_one("u16x2 s16x2") >= 0) d.unsupported();
  if (carry_out || op == "addc" || op == "subc") {
    out.a = (op[0] == 's') | (op == "addc" || op == "subc" ? 2u : 0u) | (carry_out ? 4u : 0u);
    if (op == "mad") d.unsupported("carry");
    return finish(L4K_32_64(carry), 2, t.bits);
  }
  out.a = relu;
  if (op == "add") return finish(L4K_BY_TYPE(add), 2, t.bits);
  if (op == "sub") return finish(L4K_BY_TYPE(sub), 2, t.bits);
  if (op == "mul" && part == 0) return finish(L4K_BY_TYPE(mul_lo), 2, t.bits);
  if (op == "mul" && part == 1) return finish(L4K_BY_TYPE(mul_hi), 2, t.bits);
  if (op == "mad" && part == 0) return finish(L4K_BY_TYPE(mad_lo), 3, t.bits);
  if (op == "mad" && part == 1) return finish(L4K_BY_TYPE(mad_hi), 3, t.bits);
  if (part == 2) {
    Handler h = nullptr;
    bool mad = op == "mad", s = t.is_signed();
    if (t.bits == 16)
      h = mad ? (s ? mad_wide<s16> : mad_wide<u16>) : (s ? mul_wide<s16> : mul_wide<u16>);
    if (t.bits == 32)
      h = mad ? (s ? mad_wide<s32> : mad_wide<u32>) : (s ? mul_wide<s32> : mul_wide<u32>);
    return finish(h, mad ? 3 : 2, t.bits, mad ? t.bits * 2 : 0);
  }
  if (op == "div") return finish(L4K_BY_TYPE(div), 2, t.bits);
  if (op == "rem") return finish(L4K_BY_TYPE(rem), 2, t.bits);
  if (op == "min") return finish(L4K_BY_TYPE(min), 2, t.bits);
  if (op == "max") return finish(L4K_BY_TYPE(max), 2, t.bits);
  if (op == "abs") return finish(L4K_BY_TYPE(abs), 1, t.bits);
  if (op == "neg") return finish(L4K_BY_TYPE(neg), 1, t.bits);
  if (op == "sad") return finish(L4K_BY_TYPE(sad), 3, t.bits);
  if (op == "and") return finish(L4K_BY_BITS(and_), 2, t.bits);
  if (op == "or") return finish(L4K_BY_BITS(or_), 2, t.bits);
  if (op == "xor") return finish(L4K_BY_BITS(xor_), 2, t.bits);
  if (op == "not") return finish(L4K_BY_BITS(not_), 1, t.bits);
  if (op == "cnot") return finish(L4K_BY_BITS(cnot), 1, t.bits);
  if (op == "shl") return finish(L4K_BY_BITS(shl), 2, t.bits, 0, 32);
  if (op == "shr") return finish(L4K_BY_TYPE(shr), 2, t.bits, 0, 32);
  if (op == "bfe") return finish(t.bits == 16 ? nullptr : L4K_BY_TYPE(bfe), 3, t.bits, 32, 32);
  if (op == "bfi") return finish(L4K_32_64(bfi), 4, t.bits, 32);
  if (op == "brev") return finish(L4K_32_64(brev), 1, t.bits);
  if (op == "popc") return finish(L4K_32_64(popc), 1, t.bits);
  if (op == "clz") return finish(L4K_32_64(clz), 1, t.bits);
  if (op == "bfind") {
    out.a = d.take("shiftamt");
    return finish(t.bits == 16 ? nullptr : L4K_BY_TYPE(bfind), 1, t.bits);
  }
  return false;
}

}  // namespace l4k::emu
