// ld, st, prefetches, cache policies.
#include <bit>
#include <cstring>

#include "machine/core/memory.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

// st.release: what becomes visible before the store.
enum class Release : uint8_t { none, cta, wide };
struct MemoryAccess {
  uint8_t element, reg, count;  // bytes of an element and of its register; elements per lane
  bool is_signed;
  Order order;
  Release release;
  Space space;
  u32 bytes() const { return u32{element} * count; }
};

void count(Warp& w, const MemoryAccess& s, const u64* address) {
  u64 first = address[std::countr_zero(w.active)];
  Space space = s.space == Space::none ? generic_space(&first) : s.space;
  if (space == Space::global) count_global(w, address, w.active, s.bytes());
  else if (space == Space::shared) count_shared(w, address, w.active, s.bytes());
}

// A load that polls: the same place, the same addresses, nothing has changed since.
bool polls(Warp& w, const u64* address) {
  u64 key = w.active;
  for (u32 l = w.active; l; l &= l - 1)
    key = key * 0x9e3779b97f4a7c15ull + address[std::countr_zero(l)];
  bool same = w.poll_pc == w.pc && w.poll_key == key && w.poll_progress == w.m->progress;
  w.poll_pc = w.pc, w.poll_key = key, w.poll_progress = w.m->progress;
  if (!same || w.timed_out) {
    w.timed_out = false;
    w.poll_count = 0;
    return false;
  }
  if (++w.poll_count < 4) return false;
  w.park(Wait::poll);
  return true;
}

void load(Warp& w, const Inst& in) {
  const auto s = in.modifiers.as<MemoryAccess>();
  u64 address[32];
  addresses(w, in, address);
  if ((s.order == Order::coherent || s.order == Order::acquire) && polls(w, address)) return;
  count(w, s, address);
  u32 bytes = s.bytes();
  alignas(16) uint8_t data[16];
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    read_memory(w, i, s.space, address[i], bytes, data, s.order);
    for (u32 k = 0; k < s.count; ++k) {
      if (s.element == 16) {
        std::memcpy(w.reg<uint8_t>(in.list[k]) + i * 16, data + k * 16, 16);
        continue;
      }
      u64 v = 0;
      std::memcpy(&v, data + k * s.element, s.element);
      if (s.is_signed && s.element < 8) {
        u32 shift = 64u - 8u * s.element;
        v = static_cast<u64>(static_cast<int64_t>(v << shift) >> shift);
      }
      put_lane(w, in.list[k], s.reg, i, v);
    }
  }
}

void store(Warp& w, const Inst& in) {
  const auto s = in.modifiers.as<MemoryAccess>();
  u64 address[32];
  addresses(w, in, address);
  if (s.release == Release::wide) w.m->publish(*w.cta, &w);
  else if (s.release == Release::cta) w.m->publish_warp(w);
  count(w, s, address);
  u32 bytes = s.bytes();
  alignas(16) uint8_t data[16];
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    for (u32 k = 0; k < s.count; ++k) {
      const Reg& r = in.list[k];
      if (s.element == 16) {
        std::memcpy(data + k * 16, w.reg<uint8_t>(r) + i * 16, 16);
        continue;
      }
      u64 v = get_lane(w, r, s.reg, i);
      std::memcpy(data + k * s.element, &v, s.element);
    }
    write_memory(w, i, s.space, address[i], bytes, data, s.order);
  }
  if (s.order == Order::coherent) w.release();
}

// Parameters of device functions and of calls: per lane, in the frame.
void load_frame_param(Warp& w, const Inst& in) {
  const auto s = in.modifiers.as<MemoryAccess>();
  Frame& f = *w.frames.back();
  for (u32 l = w.active; l; l &= l - 1) {
    u32 i = static_cast<u32>(std::countr_zero(l));
    const uint8_t* p = f.params.data() + i * w.program->ptx->param_bytes + in.imm;
    for (u32 k = 0; k < s.count; ++k) {
      u64 v = 0;
      std::memcpy(&v, p + k * s.element, s.element);
      put_lane(w, in.list[k], s.reg, static_cast<int>(i), v);
    }
  }
}
void store_frame_param(Warp& w, const Inst& in) {
  const auto s = in.modifiers.as<MemoryAccess>();
  Frame& f = *w.frames.back();
  if (f.params.empty()) f.params.resize(w.program->ptx->param_bytes * 32);
  for (u32 l = w.active; l; l &= l - 1) {
    u32 i = static_cast<u32>(std::countr_zero(l));
    uint8_t* p = f.params.data() + i * w.program->ptx->param_bytes + in.imm;
    for (u32 k = 0; k < s.count; ++k) {
      u64 v = get_lane(w, in.list[k], s.reg, static_cast<int>(i));
      std::memcpy(p + k * s.element, &v, s.element);
    }
  }
}

void nothing(Warp&, const Inst&) {}
void make_policy(Warp& w, const Inst& in) {
  each_lane<u64>(w, w.reg<u64>(in.d[0]), [](int) { return u64{0x14f0000000000000}; });
}

Space state_space(Decoder& d) {
  static constexpr Space kSpaces[] = {Space::global, Space::shared, Space::shared,
                                      Space::shared, Space::local,  Space::constant,
                                      Space::param,  Space::param,  Space::param};
  int s = d.take_one(
      "global shared shared::cta shared::cluster local const param param::entry "
      "param::func");
  return s < 0 ? Space::none : kSpaces[s];
}

// Cache and eviction hints change nothing that a program can see.
void take_hints(Decoder& d) {
  d.take_one("L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate");
  d.take_one("L2::evict_normal L2::evict_first L2::evict_last");
  d.take("L2::cache_hint");
  d.take_one("L2::64B L2::128B L2::256B");
}

// Bytes of the value's registers, which may be wider than the type; literals take the type's.
uint8_t common_register_bytes(Decoder& d, const PtxOperand& value, const Type& t) {
  u32 bytes = register_bytes(t.bits);
  auto widest = [&](const PtxOperand& o) {
    if (d.bits_of(o)) bytes = register_bytes(d.bits_of(o));
  };
  if (value.kind == PtxOperand::Kind::group)
    for (const auto& p : value.parts) widest(p);
  else widest(value);
  if (bytes < t.bits / 8) throw PtxError(d.in->line, d.in->text() + ": the register is too narrow");
  return static_cast<uint8_t>(bytes);
}

bool decode_load_store(Decoder& d, bool is_load) {
  Inst& out = *d.out;
  int semantics = d.take_one("weak relaxed acquire release volatile mmio");
  int scope = d.take_one("cta cluster gpu sys");
  MemoryAccess m{};
  m.space = state_space(d);
  bool nc = d.take("nc") || d.in->opcode == "ldu";
  int cache = d.take_one("ca cg cs lu cv wb wt");
  take_hints(d);
  d.take("unified");
  int vector = d.take_one("v2 v4");
  Type t = d.take_type();
  d.finish();
  m.count = static_cast<uint8_t>(vector < 0 ? 1 : 2u << vector);
  m.element = static_cast<uint8_t>(t.bits / 8);
  m.is_signed = t.is_signed();
  if (m.bytes() > 16 || t.kind == Kind::pred) d.unsupported("vector of this type");
  m.order = nc ? Order::nc : Order::weak;
  if (semantics >= 1 || cache == 1 || cache == 4) m.order = Order::coherent;
  // acquire at cta scope still goes through the CTA's own cache.
  if (semantics == 2 && scope > 0) m.order = Order::acquire;
  // .cg on a store is a hint for the caches, not an order.
  if (!is_load && semantics < 1) m.order = Order::weak;
  if (semantics == 3) m.release = scope > 0 ? Release::wide : Release::cta;
  const PtxOperand& value = d.operand(is_load ? 0 : 1);
  m.reg = common_register_bytes(d, value, t);
  d.add_address(is_load ? 1 : 0, m.space);
  d.add_list(value, m.reg * 8u, is_load ? ListUse::written : ListUse::read, t.kind == Kind::real);
  if (out.list.size() != m.count)
    throw PtxError(d.in->line, d.in->text() + ": " + std::to_string(out.list.size()) +
                                   " registers for " + std::to_string(m.count) + " elements");
  for (const auto& p : value.parts)
    if (d.bits_of(p) && register_bytes(d.bits_of(p)) != m.reg)
      throw PtxError(d.in->line, d.in->text() + ": registers of different widths");
  out.modifiers.store(m);
  bool frame_param = m.space == Space::param && out.bias == Bias::frame_params &&
                     !d.operand(is_load ? 1 : 0).parts[0].variable->kernel_param;
  if (frame_param) {
    out.propagates = true;
    out.run = is_load ? load_frame_param : store_frame_param;
  } else {
    out.propagates = m.space == Space::local;  // padding of structures is copied undefined
    out.run = is_load ? load : store;
  }
  return true;
}

}  // namespace

bool decode_memory(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  // discard: what the lines hold is undefined until they are written; here it stays.
  if (op == "discard" || op == "prefetch" || op == "prefetchu" || op == "applypriority") {
    out.run = nothing;
    return true;
  }
  if (op == "createpolicy") {
    out.run = make_policy;
    d.add_target(0, 64);
    return true;
  }
  if ((op != "ld" && op != "ldu" && op != "st") || d.in->has("async") || d.in->has("bulk"))
    return false;
  return decode_load_store(d, op != "st");
}

}  // namespace l4k::emu
