// mov, addresses of variables, conversions between address spaces.
#include <bit>
#include <cstring>

#include "machine/decode.h"
#include "machine/wgmma.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

// A copy carries the source's state along: undefined lanes stay undefined, and a copy of an
// accumulator in flight stands for its future value.
template <typename T>
void move(Warp& w, const Inst& in) {
  const T* a = w.reg<T>(in.s[0]);
  T* d = w.reg<T>(in.d[0]);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    d[i] = a[i];
  }
  const RegState from = w.state[in.s[0].reg];
  w.written(in.d[0], w.active, from.bad & w.active);
  RegState& to = w.state[in.d[0].reg];
  to.tag = in.s[0].reg ? from.tag & 0x3fffffff : 0;
  if (from.busy() == Busy::accumulator || from.busy() == Busy::alias)
    defer_move(w, in.d[0], in.s[0], sizeof(T));
}
void move_predicate(Warp& w, const Inst& in) {
  u32 v = *w.reg<u32>(in.s[0]);
  u32& d = *w.reg<u32>(in.d[0]);
  d = (d & ~w.active) | (v & w.active);
}
void move_wide(Warp& w, const Inst& in) {  // .b128
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    std::memcpy(w.reg<uint8_t>(in.d[0]) + i * 16, w.reg<uint8_t>(in.s[0]) + i * 16, 16);
  }
}
// {a, b, ..} -> d and back. in.a: bytes of one part.
void pack(Warp& w, const Inst& in) {
  u32 total = in.b;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    uint8_t* d = w.reg<uint8_t>(in.d[0]) + static_cast<u32>(i) * total;
    uint8_t out[16];
    for (size_t k = 0; k < in.list.size(); ++k)
      std::memcpy(out + k * in.a, w.reg<uint8_t>(in.list[k]) + static_cast<u32>(i) * in.a, in.a);
    std::memcpy(d, out, total);
  }
}
void unpack(Warp& w, const Inst& in) {
  u32 total = in.b;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    uint8_t s[16];
    std::memcpy(s, w.reg<uint8_t>(in.s[0]) + static_cast<u32>(i) * total, total);
    for (size_t k = 0; k < in.list.size(); ++k)
      std::memcpy(w.reg<uint8_t>(in.list[k]) + static_cast<u32>(i) * in.a, s + k * in.a, in.a);
  }
}
void unpack_bytes(Warp& w, const Inst& in) {  // mov.b32 {b0, b1, b2, b3}: parts live in 16 bits
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 v = get_lane(w, in.s[0], in.b, i);
    for (size_t k = 0; k < in.list.size(); ++k) put_lane(w, in.list[k], 2, i, v >> (8 * k) & 255);
  }
}
// Address of a variable. in.c: register bytes of the destination.
void address_of(Warp& w, const Inst& in) {
  u64 v = static_cast<u64>(in.imm) + w.bias[static_cast<int>(in.bias)];
  for (u32 l = w.active; l; l &= l - 1) put_lane(w, in.d[0], in.c, std::countr_zero(l), v);
}
void clock(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1)
    put_lane(w, in.d[0], in.c, std::countr_zero(l), w.m->instructions);
}
template <typename T>
void offset_by(Warp& w, const Inst& in) {
  map1<T, T>(w, in, [k = static_cast<u64>(in.imm)](T a) { return static_cast<T>(a + k); });
}
void is_space(Warp& w, const Inst& in) {
  u32 v = 0;
  for (int i = 0; i < 32; ++i) {
    u64 a = w.reg<u64>(in.s[0])[i];
    Space s = generic_space(&a);
    bool own = s != Space::shared || a < (1u << 24) || a >> 24 == w.cta->rank + 1;
    v |= u32(s == static_cast<Space>(in.a) && (own || in.b)) << i;
  }
  u32& d = *w.reg<u32>(in.d[0]);
  d = (d & ~w.active) | (v & w.active);
}
// in.a: generic addresses; in.b: bytes of an address
void mapa(Warp& w, const Inst& in) {
  const u32* rank = w.reg<u32>(in.s[1]);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 a = get_lane(w, in.s[0], in.b, i) + static_cast<u64>(in.imm) +
            w.bias[static_cast<int>(in.bias)];
    u64 shared = in.a ? a - kSharedWindow : a;
    if (rank[i] >= w.cta->cluster->ctas.size())
      fault("shared-out-of-bounds",
            "mapa to rank " + std::to_string(rank[i]) + " of a cluster of " +
                std::to_string(w.cta->cluster->ctas.size()),
            i);
    u64 v = map_rank(static_cast<u32>(shared), rank[i]) + (in.a ? kSharedWindow : 0);
    put_lane(w, in.d[0], in.b, i, v);
  }
}
void cta_rank(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 a = get_lane(w, in.s[0], in.b, i);
    if (in.a) a -= kSharedWindow;
    w.reg<u32>(in.d[0])[i] = a >> 24 ? static_cast<u32>(a >> 24) - 1 : w.cta->rank;
  }
}

bool decode_symbol(Decoder& d, const PtxOperand& o, uint64_t extra) {
  Inst& out = *d.out;
  if (!o.variable) d.unsupported("address of '" + o.name + "'");
  const Variable& v = *o.variable;
  out.run = address_of;
  out.c = register_bytes(d.bits_of(d.operand(0)));
  out.imm = static_cast<int64_t>(o.value + extra);
  if (v.space == Space::shared && v.external) out.bias = Bias::dynamic_shared;
  else out.imm += static_cast<int64_t>(v.address);
  if (v.space == Space::local) out.bias = Bias::local_frame;
  if (v.space == Space::param) {
    if (!v.kernel_param) d.unsupported("address of a function's parameter");
    out.bias = Bias::frame_params;
  }
  if (v.space == Space::global && v.external) d.unsupported("external variable '" + v.name + "'");
  return true;
}

bool decode_vector_move(Decoder& d, u32 bits) {
  Inst& out = *d.out;
  bool packing = d.operand(1).kind == PtxOperand::Kind::group;
  const PtxOperand& group = d.operand(packing ? 1 : 0);
  auto n = static_cast<u32>(group.parts.size());
  if (!n || bits % n || (bits / n) % 8)
    throw PtxError(d.in->line, "mov: a group does not fill the register");
  out.a = bits / n / 8;
  out.b = bits / 8;
  if (packing) {
    d.add_target(0, bits);
    d.add_list(group, bits / n, 1);
    out.run = pack;
  } else {
    d.add_source(1, bits);
    d.add_list(group, bits / n, 2);
    out.run = out.a == 1 ? unpack_bytes : unpack;
  }
  if (packing && out.a == 1) d.unsupported("packing bytes");
  out.propagates = true;
  return true;
}

Space named_space(Decoder& d, bool* cluster) {
  int s = d.take_one("global shared shared::cta shared::cluster local const param");
  if (cluster) *cluster = s == 3;
  static constexpr Space kSpaces[] = {Space::global, Space::shared,   Space::shared, Space::shared,
                                      Space::local,  Space::constant, Space::param};
  return s < 0 ? Space::none : kSpaces[s];
}

}  // namespace

bool decode_move(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "mov") {
    Type t = d.take_type();
    d.finish();
    if (d.operand(0).kind == PtxOperand::Kind::group ||
        d.operand(1).kind == PtxOperand::Kind::group)
      return decode_vector_move(d, t.bits);
    const PtxOperand& s = d.operand(1);
    d.add_target(0, t.bits);
    if (s.kind == PtxOperand::Kind::symbol) {
      if (s.name[0] == '%') {
        if (s.name.rfind("%clock", 0) != 0 && s.name.rfind("%globaltimer", 0) != 0)
          throw PtxError(d.in->line, "'" + s.name + "' is not declared");
        out.run = clock;
        out.c = register_bytes(t.bits);
        return true;
      }
      return decode_symbol(d, s, 0);
    }
    if (t.kind == Kind::pred) {
      d.add_source(1, 1);
      out.propagates = true;
      out.run = move_predicate;
      return true;
    }
    d.add_source(1, t.bits);
    if (t.bits == 128) {
      out.run = move_wide, out.propagates = true;
      return true;
    }
    out.checks_itself = true;
    out.run = t.bits == 64 ? move<uint64_t> : t.bits == 32 ? move<uint32_t> : move<uint16_t>;
    return true;
  }
  if (op == "cvta") {
    bool to = d.take("to"), cluster;
    Space s = named_space(d, &cluster);
    Type t = d.take_type();
    d.finish();
    u64 window = s == Space::shared ? kSharedWindow : s == Space::local ? kLocalWindow : 0;
    if (to) window = 0 - window;
    d.add_target(0, t.bits);
    if (d.operand(1).kind == PtxOperand::Kind::symbol)
      return decode_symbol(d, d.operand(1), window);
    d.add_source(1, t.bits);
    out.propagates = true;
    out.imm = static_cast<int64_t>(window);
    out.run = t.bits == 64 ? offset_by<u64> : offset_by<u32>;
    return true;
  }
  if (op == "isspacep") {
    bool cluster;
    out.a = static_cast<u32>(named_space(d, &cluster));
    out.b = cluster;
    d.finish();
    d.add_target(0, 1);
    d.add_source(1, 64);
    out.run = is_space;
    return true;
  }
  if (op == "mapa" || op == "getctarank") {
    out.a = named_space(d, nullptr) == Space::none;
    Type t = d.take_type();
    d.finish();
    const PtxOperand& a = d.operand(1);
    out.b = register_bytes(op == "mapa" ? t.bits : std::max(32u, d.bits_of(a)));
    d.add_target(0, t.bits);
    if (a.kind == PtxOperand::Kind::symbol && a.variable && a.variable->external) {
      u64 zero = 0;
      out.bias = Bias::dynamic_shared;
      out.imm = static_cast<int64_t>(a.value + (out.a ? kSharedWindow : 0));
      out.s[out.sources++] = d.constant(&zero, out.b);
    } else {
      d.add_source(1, out.b * 8);
    }
    if (op == "mapa") d.add_source(2, 32);
    out.run = op == "mapa" ? mapa : cta_rank;
    return true;
  }
  return false;
}

}  // namespace l4k::emu
