// mov, addresses of variables, conversions between address spaces.
#include <bit>
#include <cstring>

#include "machine/core/memory.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"

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
  const RegState from = w.state[in.s[0].index];
  w.written(in.d[0], w.active, from.bad & w.active);
  if (from.bad & w.active) w.set_origin(in.d[0], w.origin(in.s[0]));
  RegState& to = w.state[in.d[0].index];
  to.tag = in.s[0].index ? from.tag : 0;
  to.set_busy(Busy::none);
  if (from.in_flight()) w.defer_move(in.d[0], in.s[0], sizeof(T));
}
void move_predicate(Warp& w, const Inst& in) { w.set_predicate(in.d[0], *w.reg<u32>(in.s[0])); }
void move_wide(Warp& w, const Inst& in) {  // .b128
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    std::memcpy(w.reg<uint8_t>(in.d[0]) + i * 16, w.reg<uint8_t>(in.s[0]) + i * 16, 16);
  }
}
// {a, b, ..} -> d and back.
struct Group {
  uint8_t part, total;  // bytes
};
void pack(Warp& w, const Inst& in) {
  const auto [part, total] = in.modifiers.as<Group>();
  for (u32 l = w.active; l; l &= l - 1) {
    u32 i = static_cast<u32>(std::countr_zero(l));
    uint8_t out[16];
    for (size_t k = 0; k < in.list.size(); ++k)
      std::memcpy(out + k * part, w.reg<uint8_t>(in.list[k]) + i * part, part);
    std::memcpy(w.reg<uint8_t>(in.d[0]) + i * total, out, total);
  }
}
void unpack(Warp& w, const Inst& in) {
  const auto [part, total] = in.modifiers.as<Group>();
  for (u32 l = w.active; l; l &= l - 1) {
    u32 i = static_cast<u32>(std::countr_zero(l));
    uint8_t s[16];
    std::memcpy(s, w.reg<uint8_t>(in.s[0]) + i * total, total);
    for (size_t k = 0; k < in.list.size(); ++k)
      std::memcpy(w.reg<uint8_t>(in.list[k]) + i * part, s + k * part, part);
  }
}
void unpack_bytes(Warp& w, const Inst& in) {  // mov.b32 {b0, b1, b2, b3}: parts live in 16 bits
  u32 total = in.modifiers.as<Group>().total;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 v = get_lane(w, in.s[0], total, i);
    for (size_t k = 0; k < in.list.size(); ++k) put_lane(w, in.list[k], 2, i, v >> (8 * k) & 255);
  }
}
void pack_bytes(Warp& w, const Inst& in) {
  u32 total = in.modifiers.as<Group>().total;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 v = 0;
    for (size_t k = 0; k < in.list.size(); ++k)
      v |= (get_lane(w, in.list[k], 2, i) & 255) << (8 * k);
    put_lane(w, in.d[0], total, i, v);
  }
}
struct Width {
  uint8_t bytes;  // of the destination register
};
void address_of_variable(Warp& w, const Inst& in) {
  u64 v = static_cast<u64>(in.imm) + w.bias[static_cast<int>(in.bias)];
  u32 bytes = in.modifiers.as<Width>().bytes;
  for (u32 l = w.active; l; l &= l - 1) put_lane(w, in.d[0], bytes, std::countr_zero(l), v);
}
void clock(Warp& w, const Inst& in) {
  u32 bytes = in.modifiers.as<Width>().bytes;
  for (u32 l = w.active; l; l &= l - 1)
    put_lane(w, in.d[0], bytes, std::countr_zero(l), w.m->instructions);
}
template <typename T, bool kTo>  // cvta.to: out of the window, which is at imm
void convert_address(Warp& w, const Inst& in) {
  u64 window = static_cast<u64>(in.imm) + w.bias[static_cast<int>(in.bias)];
  if (kTo) window = 0 - window;
  map1<T, T>(w, in, [window](T a) { return static_cast<T>(a + window); });
}
struct NamedSpace {
  Space space;
  bool cluster;  // shared::cluster: any CTA's
};
void is_space(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<NamedSpace>();
  u32 v = 0;
  for (int i = 0; i < 32; ++i) {
    u64 a = w.reg<u64>(in.s[0])[i];
    Space s = generic_space(&a);
    bool own = s != Space::shared || a < (1u << 24) || a >> 24 == w.cta->rank + 1;
    v |= u32(s == m.space && (own || m.cluster)) << i;
  }
  w.set_predicate(in.d[0], v);
}
struct ClusterAddress {
  bool generic;   // else in the shared window
  uint8_t bytes;  // of an address
};
void mapa(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<ClusterAddress>();
  const u32* rank = w.reg<u32>(in.s[1]);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 a = get_lane(w, in.s[0], m.bytes, i) + static_cast<u64>(in.imm) +
            w.bias[static_cast<int>(in.bias)];
    u64 shared = m.generic ? a - kSharedWindow : a;
    if (rank[i] >= w.cta->cluster->ctas.size())
      fault("shared-out-of-bounds",
            "mapa to rank " + std::to_string(rank[i]) + " of a cluster of " +
                std::to_string(w.cta->cluster->ctas.size()),
            i);
    u64 v = map_rank(static_cast<u32>(shared), rank[i]) + (m.generic ? kSharedWindow : 0);
    put_lane(w, in.d[0], m.bytes, i, v);
  }
}
void cta_rank(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<ClusterAddress>();
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 a = get_lane(w, in.s[0], m.bytes, i);
    if (m.generic) a -= kSharedWindow;
    w.reg<u32>(in.d[0])[i] = a >> 24 ? static_cast<u32>(a >> 24) - 1 : w.cta->rank;
  }
}

bool decode_symbol(Decoder& d, const PtxOperand& o, uint64_t extra) {
  Inst& out = *d.out;
  out.run = address_of_variable;
  out.modifiers.store(Width{static_cast<uint8_t>(register_bytes(d.bits_of(d.operand(0))))});
  out.imm = static_cast<int64_t>(o.value + extra);
  if (!o.variable) {
    u64 function = d.image->address_of(o.name);
    if (!function) d.unsupported("address of '" + o.name + "'");
    out.imm += static_cast<int64_t>(function);
    return true;
  }
  const Variable& v = *o.variable;
  if (v.space == Space::shared && v.external) out.bias = Bias::dynamic_shared;
  else out.imm += static_cast<int64_t>(v.address);
  if (v.space == Space::local) out.bias = Bias::local_frame;
  if (v.space == Space::param && !v.kernel_param)
    d.unsupported("address of a function's parameter");
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
  Group m{static_cast<uint8_t>(bits / n / 8), static_cast<uint8_t>(bits / 8)};
  out.modifiers.store(m);
  if (packing) {
    d.add_target(0, bits);
    d.add_list(group, bits / n, ListUse::read);
    out.run = m.part == 1 ? pack_bytes : pack;
  } else {
    d.add_source(1, bits);
    d.add_list(group, bits / n, ListUse::written);
    out.run = m.part == 1 ? unpack_bytes : unpack;
  }
  out.propagates = true;
  return true;
}

bool decode_mov(Decoder& d) {
  Inst& out = *d.out;
  Type t = d.take_type();
  d.finish();
  const PtxOperand& s = d.operand(1);
  if (d.operand(0).kind == PtxOperand::Kind::group || s.kind == PtxOperand::Kind::group)
    return decode_vector_move(d, t.bits);
  d.add_target(0, t.bits);
  if (s.kind == PtxOperand::Kind::symbol && s.name[0] == '%') {
    if (s.name.rfind("%clock", 0) != 0 && s.name.rfind("%globaltimer", 0) != 0)
      throw PtxError(d.in->line, "'" + s.name + "' is not declared");
    out.run = clock;
    d.program->communicates = true;  // compares what happens when
    out.modifiers.store(Width{static_cast<uint8_t>(register_bytes(t.bits))});
    return true;
  }
  if (s.kind == PtxOperand::Kind::symbol) return decode_symbol(d, s, 0);
  d.add_source(1, t.bits);
  if (t.kind == Kind::pred || t.bits == 128) {
    out.propagates = true;
    out.run = t.bits == 128 ? move_wide : move_predicate;
    return true;
  }
  out.checks_itself = true;
  out.run = t.bits == 64 ? move<uint64_t> : t.bits == 32 ? move<uint32_t> : move<uint16_t>;
  return true;
}

NamedSpace named_space(Decoder& d) {
  int s = d.take_one("global shared shared::cta shared::cluster local const param param::entry");
  static constexpr Space kSpaces[] = {Space::global, Space::shared,   Space::shared, Space::shared,
                                      Space::local,  Space::constant, Space::param,  Space::param};
  return {s < 0 ? Space::none : kSpaces[s], s == 3};
}

bool decode_cvta(Decoder& d) {
  Inst& out = *d.out;
  bool to = d.take("to");
  Space s = named_space(d).space;
  Type t = d.take_type();
  d.finish();
  u64 window = s == Space::shared ? kSharedWindow : s == Space::local ? kLocalWindow : 0;
  d.add_target(0, t.bits);
  if (s == Space::param) out.bias = Bias::frame_params;
  if (d.operand(1).kind == PtxOperand::Kind::symbol)
    return decode_symbol(d, d.operand(1), to ? 0 - window : window);
  d.add_source(1, t.bits);
  out.propagates = true;
  out.imm = static_cast<int64_t>(window);
  if (t.bits == 64) out.run = to ? convert_address<u64, true> : convert_address<u64, false>;
  else out.run = to ? convert_address<u32, true> : convert_address<u32, false>;
  return true;
}

bool decode_isspacep(Decoder& d) {
  d.out->modifiers.store(named_space(d));
  d.finish();
  d.add_target(0, 1);
  d.add_source(1, 64);
  d.out->run = is_space;
  return true;
}

bool decode_cluster_address(Decoder& d, bool is_mapa) {
  Inst& out = *d.out;
  ClusterAddress m{};
  m.generic = named_space(d).space == Space::none;
  Type t = d.take_type();
  d.finish();
  const PtxOperand& a = d.operand(1);
  m.bytes = static_cast<uint8_t>(register_bytes(is_mapa ? t.bits : std::max(32u, d.bits_of(a))));
  out.modifiers.store(m);
  d.add_target(0, is_mapa ? t.bits : 32);
  if (a.kind == PtxOperand::Kind::symbol && a.variable && a.variable->external) {
    u64 zero = 0;
    out.bias = Bias::dynamic_shared;
    out.imm = static_cast<int64_t>(a.value + (m.generic ? kSharedWindow : 0));
    out.s[out.sources++] = d.constant(&zero, m.bytes);
  } else {
    d.add_source(1, m.bytes * 8);
  }
  if (is_mapa) d.add_source(2, 32);
  out.run = is_mapa ? mapa : cta_rank;
  return true;
}

}  // namespace

bool decode_move(Decoder& d) {
  const std::string& op = d.in->opcode;
  if (op == "mov") return decode_mov(d);
  if (op == "cvta") return decode_cvta(d);
  if (op == "isspacep") return decode_isspacep(d);
  if (op == "mapa" || op == "getctarank") return decode_cluster_address(d, op == "mapa");
  return false;
}

}  // namespace l4k::emu
