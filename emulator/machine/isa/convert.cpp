// cvt in all its forms.
#include <bit>
#include <cstring>

#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

// One side of a conversion: an integer or a float of some bits, in a register of some bytes.
struct End {
  bool integer, is_signed;
  Format format;  // of floats
  uint8_t bits, bytes;
};
struct Conversion {
  CvtOptions options;
  bool integral;  // float to float: rounds to an integral value
  End from, to;   // the general case only
};
const Conversion& conversion(const Inst& in) { return in.modifiers.as<Conversion>(); }
const CvtOptions& options(const Inst& in) { return conversion(in).options; }

// Common integer conversions: register widths equal the types'.
template <typename D, typename S>
void widen(Warp& w, const Inst& in) {
  map1<D, S>(w, in, [](S a) { return static_cast<D>(a); });
}
void f32_from_bf16(Warp& w, const Inst& in) {
  map1<u32, u16>(w, in, [](u16 a) { return u32{a} << 16; });
}
void f32_from_f16(Warp& w, const Inst& in) {
  map1<float, u16>(w, in, [](u16 a) { return f16_to_float(a); });
}
void bf16_from_f32(Warp& w, const Inst& in) {
  map1<u16, float>(w, in, [o = options(in)](float a) { return float_to_bf16(a, o); });
}
void f16_from_f32(Warp& w, const Inst& in) {
  map1<u16, float>(w, in, [o = options(in)](float a) { return float_to_f16(a, o); });
}
void tf32_from_f32(Warp& w, const Inst& in) {
  map1<u32, float>(w, in, [o = options(in)](float a) { return float_to_tf32(a, o); });
}
u64 extend(u64 v, u32 bits, bool is_signed) {
  if (bits == 64) return v;
  v &= (u64{1} << bits) - 1;
  return is_signed && (v >> (bits - 1) & 1) ? v | ~u64{0} << bits : v;
}
void general(Warp& w, const Inst& in) {
  const auto [o, integral, s, d] = conversion(in);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 x = extend(get_lane(w, in.s[0], s.bytes, i), s.bits, s.integer && s.is_signed), v;
    if (s.integer && d.integer) {
      v = int_to_int(x, s.is_signed, static_cast<int>(d.bits), d.is_signed, o.sat);
    } else if (s.integer) {
      v = int_to_float(d.format, x, s.is_signed, o);
    } else if (d.integer) {
      v = float_to_int(s.format, x, static_cast<int>(d.bits), d.is_signed, o.round, o.ftz);
    } else if (s.format == d.format && s.format == Format::f32) {
      float f = from_bits(static_cast<u32>(x));
      if (integral) f = round_to_integral(f, o.round, o.ftz, o.sat);
      else if (o.ftz) f = flush(f);
      if (!integral && o.sat) f = saturate(f);
      v = bits(f);
    } else if (s.format == d.format && s.format == Format::f64) {
      double f = std::bit_cast<double>(x);
      v = std::bit_cast<u64>(integral ? round_to_integral(f, o.round) : f);
    } else if (integral) {
      u64 f = cvt_float(Format::f32, s.format, x);
      f = bits(round_to_integral(from_bits(static_cast<u32>(f)), o.round, o.ftz, o.sat));
      v = cvt_float(d.format, Format::f32, f);
    } else {
      v = cvt_float(d.format, s.format, x, o);
    }
    put_lane(w, in.d[0], d.bytes, i, extend(v, d.bits, d.integer && d.is_signed));
  }
}
template <u32 (*Pack)(float, float, CvtOptions)>
void pack32(Warp& w, const Inst& in) {
  map2<u32, float, float>(w, in, [o = options(in)](float a, float b) { return Pack(a, b, o); });
}
template <u16 (*Pack)(float, float, CvtOptions)>
void pack16(Warp& w, const Inst& in) {
  map2<u16, float, float>(w, in, [o = options(in)](float a, float b) { return Pack(a, b, o); });
}
template <uint8_t (*Narrow)(u16, bool)>
void fp8_from_f16x2(Warp& w, const Inst& in) {
  map1<u16, u32>(w, in, [relu = options(in).relu](u32 a) {
    return u16(Narrow(u16(a), relu) | Narrow(u16(a >> 16), relu) << 8);
  });
}
template <u32 (*Widen)(u16, bool)>
void f16x2_from_fp8(Warp& w, const Inst& in) {
  map1<u32, u16>(w, in, [relu = options(in).relu](u16 a) { return Widen(a, relu); });
}

End end_of(const Type& t, u32 register_bytes) {
  End e{};
  e.bits = static_cast<uint8_t>(t.bits), e.bytes = static_cast<uint8_t>(register_bytes);
  if (t.kind == Kind::bf16) {
    e.format = Format::bf16;
  } else if (t.kind == Kind::real) {
    e.format = t.name == "tf32" ? Format::tf32
               : t.bits == 64   ? Format::f64
               : t.bits == 32   ? Format::f32
                                : Format::f16;
  } else {
    e.integer = true, e.is_signed = t.is_signed();
  }
  return e;
}

// Two values to a packed pair, or a pair to a pair; null for other types.
Handler packed_handler(const Type& to, const Type& from) {
  bool e4m3 = to.name == "e4m3x2" || from.name == "e4m3x2";
  if (from.name == "f32") {
    if (to.kind == Kind::packed_f16) return pack32<pack_f16x2>;
    if (to.kind == Kind::packed_bf16) return pack32<pack_bf16x2>;
    if (to.name == "e4m3x2") return pack16<pack_e4m3x2>;
    if (to.name == "e5m2x2") return pack16<pack_e5m2x2>;
  }
  if (from.kind == Kind::packed_f16 && to.bits == 16)
    return e4m3 ? fp8_from_f16x2<f16_to_e4m3> : fp8_from_f16x2<f16_to_e5m2>;
  if (to.kind == Kind::packed_f16 && from.bits == 16)
    return e4m3 ? f16x2_from_fp8<e4m3x2_to_f16x2> : f16x2_from_fp8<e5m2x2_to_f16x2>;
  return nullptr;
}

// The common conversions, when registers are as wide as their types; else `general`.
Handler scalar_handler(const Type& to, const Type& from, bool modified) {
  auto is = [&](const char* a, const char* b) { return to.name == a && from.name == b; };
  if (is("bf16", "f32")) return bf16_from_f32;
  if (is("f16", "f32")) return f16_from_f32;
  if (is("tf32", "f32")) return tf32_from_f32;
  if (modified) return general;
  if (is("f32", "bf16")) return f32_from_bf16;
  if (is("f32", "f16")) return f32_from_f16;
  if (is("u64", "u32")) return widen<uint64_t, uint32_t>;
  if (is("s64", "s32")) return widen<int64_t, int32_t>;
  if (is("u32", "u64")) return widen<uint32_t, uint64_t>;
  if (is("u32", "u16")) return widen<uint32_t, uint16_t>;
  if (is("u16", "u32")) return widen<uint16_t, uint32_t>;
  return general;
}

}  // namespace

bool decode_convert(Decoder& d) {
  if (d.in->opcode != "cvt") return false;
  Inst& out = *d.out;
  int round = d.take_one("rn rz rm rp rna"), integral = d.take_one("rni rzi rmi rpi");
  if (round < 0 && integral >= 0) round = integral;
  Conversion m{};
  CvtOptions& o = m.options;
  o.round = static_cast<Round>(std::max(round, 0));
  o.ftz = d.take("ftz"), o.sat = d.take("sat");
  o.satfinite = d.take("satfinite"), o.relu = d.take("relu");
  m.integral = integral >= 0;
  bool modified = o.ftz || o.sat || o.satfinite || o.relu || m.integral;
  Type to = d.take_type(), from = d.take_type();
  d.finish();
  out.propagates = true;
  out.modifiers.store(m);
  d.add_target(0, 0);
  if (Handler h = packed_handler(to, from)) {
    out.run = h;
    d.target(d.operand(0), to.bits);
    u32 bits = from.kind == Kind::packed_f16 ? 32 : from.bits;
    for (size_t i = 1; i <= (from.name == "f32" ? 2u : 1u); ++i) d.add_source(i, bits, true);
    return true;
  }
  auto simple = [](const Type& t) {
    return t.kind == Kind::uint || t.kind == Kind::sint || t.kind == Kind::real ||
           t.kind == Kind::bf16;
  };
  if (to.kind == Kind::bits && from.kind == Kind::bits) to.kind = from.kind = Kind::uint;
  if (!simple(to) || !simple(from)) d.unsupported();
  const PtxOperand& src = d.operand(1);
  u32 have = d.bits_of(src), to_bits = d.bits_of(d.operand(0));
  if (d.operand(0).kind == PtxOperand::Kind::sink) to_bits = to.bits;
  if (have && have < from.bits)
    throw PtxError(d.in->line, "cvt: the source register is too narrow");
  if (to_bits < to.bits) throw PtxError(d.in->line, "cvt: the destination register is too narrow");
  out.s[out.sources++] = d.source(src, have ? have : from.bits, from.kind == Kind::real);
  m.from = end_of(from, register_bytes(have ? have : from.bits));
  m.to = end_of(to, register_bytes(to_bits));
  out.modifiers.store(m);
  bool exact = (!have || have == from.bits) && to_bits == to.bits;
  out.run = exact ? scalar_handler(to, from, modified) : general;
  return true;
}

}  // namespace l4k::emu
