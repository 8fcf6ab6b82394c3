// The less common integer instructions: 24-bit products, carries of products, saturation, bit masks,
// packing, two or four integers in a register.
#include <bit>

#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "machine/isa/operations.h"
#include "tensor/packed.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;
using s64 = int64_t;

struct Product24 {
  bool is_signed, high;
};
void product24(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<Product24>();
  auto f = [m](u32 a, u32 b) {
    s64 v = extend_from(a, 24, m.is_signed) * extend_from(b, 24, m.is_signed);
    return static_cast<u32>(m.high ? v >> 16 : v);
  };
  if (in.sources == 2) return map2<u32, u32, u32>(w, in, f);
  map3<u32, u32, u32, u32>(w, in, [f](u32 a, u32 b, u32 c) { return f(a, b) + c; });
}

struct DotProduct2 {
  bool a_signed, b_signed, high;  // high: the upper two bytes of b
};
void dp2a(Warp& w, const Inst& in) {
  map3<u32, u32, u32, u32>(w, in, [m = in.modifiers.as<DotProduct2>()](u32 a, u32 b, u32 c) {
    s64 sum = c;
    for (u32 i = 0; i < 2; ++i)
      sum += extend_from(a >> (16 * i), 16, m.a_signed) *
             extend_from(b >> (8 * i + (m.high ? 16 : 0)), 8, m.b_signed);
    return static_cast<u32>(sum);
  });
}

enum class Saturated : uint8_t { add, sub, mad_hi };
void saturated(Warp& w, const Inst& in) {
  const auto op = in.modifiers.as<Saturated>();
  auto wide = [](u32 x) { return s64{static_cast<int32_t>(x)}; };
  if (op == Saturated::mad_hi)
    return map3<u32, u32, u32, u32>(w, in, [wide](u32 a, u32 b, u32 c) {
      return static_cast<u32>(clamp_to((wide(a) * wide(b) >> 32) + wide(c), 32, true));
    });
  map2<u32, u32, u32>(w, in, [op, wide](u32 a, u32 b) {
    s64 v = op == Saturated::add ? wide(a) + wide(b) : wide(a) - wide(b);
    return static_cast<u32>(clamp_to(v, 32, true));
  });
}

struct CarriedProduct {
  bool is_signed, high, carry_in, carry_out;
};
template <typename T, typename Signed, typename Wide, typename SignedWide>
void carried_product(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<CarriedProduct>();
  const T *a = w.reg<T>(in.s[0]), *b = w.reg<T>(in.s[1]), *c = w.reg<T>(in.s[2]);
  T* d = w.reg<T>(in.d[0]);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    Wide p = m.is_signed ? static_cast<Wide>(SignedWide{static_cast<Signed>(a[i])} *
                                             SignedWide{static_cast<Signed>(b[i])})
                         : Wide{a[i]} * b[i];
    T part = static_cast<T>(m.high ? p >> (8 * sizeof(T)) : p);
    Wide sum = Wide{part} + c[i] + (m.carry_in ? w.carry >> i & 1 : 0);
    d[i] = static_cast<T>(sum);
    if (m.carry_out)
      w.carry = (w.carry & ~(1u << i)) | static_cast<u32>(sum >> (8 * sizeof(T)) & 1) << i;
  }
}

struct Clamps {
  bool clamp, is_signed;  // else wraps
};
void extend_bits(Warp& w, const Inst& in) {  // szext
  map2<u32, u32, u32>(w, in, [m = in.modifiers.as<Clamps>()](u32 a, u32 b) -> u32 {
    u32 n = m.clamp ? std::min(b, 32u) : b & 31;
    return n ? static_cast<u32>(extend_from(a, n, m.is_signed)) : 0;
  });
}
void bit_mask(Warp& w, const Inst& in) {  // bmsk
  map2<u32, u32, u32>(w, in, [m = in.modifiers.as<Clamps>()](u32 a, u32 b) {
    u32 at = m.clamp ? std::min(a, 32u) : a & 31, n = m.clamp ? std::min(b, 32u) : b & 31;
    return static_cast<u32>(((u64{1} << n) - 1) << at);
  });
}
void find_set_bit(Warp& w, const Inst& in) {  // fns
  map3<u32, u32, u32, u32>(w, in, [](u32 mask, u32 base, u32 offset) {
    auto step = static_cast<int32_t>(offset);
    if (step == 0) return base < 32 && mask >> base & 1 ? base : ~0u;
    s64 left = step < 0 ? -s64{step} : s64{step};
    for (s64 at = base; at >= 0 && at < 32; at += step < 0 ? -1 : 1)
      if ((mask >> at & 1) && --left == 0) return static_cast<u32>(at);
    return ~0u;
  });
}

struct Pack {
  uint8_t bits;
  bool is_signed;
};
void pack(Warp& w, const Inst& in) {  // cvt.pack: c, a, b from the top
  const auto m = in.modifiers.as<Pack>();
  auto f = [m](u32 a, u32 b) {
    auto part = [m](u32 x) {
      return static_cast<u32>(clamp_to(static_cast<int32_t>(x), m.bits, m.is_signed)) &
             ((1u << m.bits) - 1);
    };
    return part(a) << m.bits | part(b);
  };
  if (in.sources == 2) return map2<u32, u32, u32>(w, in, f);
  map3<u32, u32, u32, u32>(w, in,
                           [f, m](u32 a, u32 b, u32 c) { return c << (2 * m.bits) | f(a, b); });
}

void simd(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<Simd>();
  if (in.sources == 2)
    return map2<u32, u32, u32>(w, in, [m](u32 a, u32 b) { return simd_value(m, a, b, 0); });
  map3<u32, u32, u32, u32>(w, in, [m](u32 a, u32 b, u32 c) { return simd_value(m, a, b, c); });
}

bool finish(Decoder& d, Handler h, int sources) { return finish_operation(d, h, kB32, {sources}); }

bool decode_carried_product(Decoder& d) {
  CarriedProduct m{};
  m.carry_in = d.in->opcode == "madc", m.carry_out = d.take("cc");
  int part = d.take_one("lo hi");
  Type t = d.take_type();
  if (part < 0) d.unsupported();
  m.high = part == 1, m.is_signed = t.is_signed();
  d.out->modifiers.store(m);
  Handler h = t.bits == 32   ? carried_product<u32, int32_t, u64, s64>
              : t.bits == 64 ? carried_product<u64, s64, unsigned __int128, __int128>
                             : nullptr;
  return finish_operation(d, h, t, {3});
}

bool decode_cvt_pack(Decoder& d) {
  d.take("pack"), d.take("sat");
  Type to = d.take_type(), from = d.take_type();
  bool third = d.try_type().has_value();
  if (from.name != "s32" || to.bits > 16) d.unsupported("types");
  d.out->modifiers.store(Pack{static_cast<uint8_t>(to.bits), to.is_signed()});
  return finish(d, pack, third ? 3 : 2);
}

bool decode_simd(Decoder& d, Simd m, bool video) {
  if (video) {
    Type to = d.take_type(), a = d.take_type(), b = d.take_type();
    m.d_signed = to.is_signed(), m.a_signed = a.is_signed(), m.b_signed = b.is_signed();
    m.saturates = d.take("sat"), m.sums = d.take("add");
    d.out->modifiers.store(m);
    return finish(d, simd, 3);
  }
  m.bits = 16, m.a_signed = m.b_signed = d.take_one("u16x2 s16x2") == 1;
  m.relu = d.take("relu");
  d.out->modifiers.store(m);
  return finish(d, simd, 2);
}

}  // namespace

bool decode_packed_integer(Decoder& d) {
  const std::string& op = d.in->opcode;
  if (op == "mul24" || op == "mad24") {
    int part = d.take_one("lo hi");
    Type t = d.take_type();
    if (part < 0 || d.in->has("sat")) d.unsupported();
    d.out->modifiers.store(Product24{t.is_signed(), part == 1});
    return finish(d, product24, op == "mul24" ? 2 : 3);
  }
  if (op == "dp2a") {
    bool high = d.take_one("lo hi") == 1;
    Type a = d.take_type(), b = d.take_type();
    d.out->modifiers.store(DotProduct2{a.is_signed(), b.is_signed(), high});
    return finish(d, dp2a, 3);
  }
  if (op == "szext" || op == "bmsk") {
    bool clamps = d.take_one("wrap clamp") == 1;
    d.out->modifiers.store(Clamps{clamps, d.take_type().is_signed()});
    return finish(d, op == "szext" ? extend_bits : bit_mask, 2);
  }
  if (op == "fns") {
    d.take("b32");
    return finish(d, find_set_bit, 3);
  }
  if (op == "cvt" && d.in->has("pack")) return decode_cvt_pack(d);
  if (op == "madc" || (op == "mad" && d.in->has("cc"))) return decode_carried_product(d);
  if (d.in->has("sat") && d.in->has("s32") && (op == "add" || op == "sub" || op == "mad")) {
    d.take("sat"), d.take("s32");
    bool mad = op == "mad" && d.take("hi");
    d.out->modifiers.store(mad ? Saturated::mad_hi : op == "add" ? Saturated::add : Saturated::sub);
    return finish(d, saturated, mad ? 3 : 2);
  }
  static constexpr const char* kOps[] = {"add", "sub", "min", "max", "absdiff"};
  bool halves = d.in->has("u16x2") || d.in->has("s16x2");
  for (uint8_t i = 0; i < std::size(kOps); ++i) {
    Simd m{};
    m.op = static_cast<Simd::Op>(i);
    if (halves && op == kOps[i]) return decode_simd(d, m, false);
    for (int count : {2, 4})
      if (op == "v" + std::string(kOps[i]) + std::to_string(count)) {
        m.bits = static_cast<uint8_t>(32 / count);
        return decode_simd(d, m, true);
      }
  }
  return false;
}

}  // namespace l4k::emu
