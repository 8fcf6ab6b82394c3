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

// The space that all lanes' addresses lie in, which become addresses in it; none if they differ.
Space common_space(Warp& w, Space space, u64* address) {
  if (space != Space::none) return space;
  u64 low = ~u64{0}, high = 0;
  for (u32 l = w.active; l; l &= l - 1) {
    u64 a = address[std::countr_zero(l)];
    low = std::min(low, a), high = std::max(high, a);
  }
  if (high < kSharedWindow) return Space::global;
  if (low < kSharedWindow || high >= kLocalWindow) return Space::none;
  for (int i = 0; i < 32; ++i) address[i] -= kSharedWindow;
  return Space::shared;
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

// From and to the registers of one lane.
void spread(Warp& w, const Inst& in, const MemoryAccess& s, int lane, const uint8_t* data) {
  for (u32 k = 0; k < s.count; ++k) {
    if (s.element == 16) {
      std::memcpy(w.reg<uint8_t>(in.list[k]) + lane * 16, data + k * 16, 16);
      continue;
    }
    u64 v = 0;
    std::memcpy(&v, data + k * s.element, s.element);
    if (s.is_signed && s.element < 8) {
      u32 shift = 64u - 8u * s.element;
      v = static_cast<u64>(static_cast<int64_t>(v << shift) >> shift);
    }
    put_lane(w, in.list[k], s.reg, lane, v);
  }
}
void collect(Warp& w, const Inst& in, const MemoryAccess& s, int lane, uint8_t* data) {
  for (u32 k = 0; k < s.count; ++k) {
    const Reg& r = in.list[k];
    if (s.element == 16) {
      std::memcpy(data + k * 16, w.reg<uint8_t>(r) + lane * 16, 16);
      continue;
    }
    u64 v = get_lane(w, r, s.reg, lane);
    std::memcpy(data + k * s.element, &v, s.element);
  }
}

// Calls f with the type of the elements where it is their registers' too; whether it is.
template <typename F>
bool with_type(const MemoryAccess& s, F&& f) {
  if (s.element != s.reg) return false;
  switch (s.element) {
    case 2:
      return f(uint16_t{}), true;
    case 4:
      return f(u32{}), true;
    case 8:
      return f(u64{}), true;
    default:
      return false;
  }
}

// All lanes at once, from host memory.
bool gather(Warp& w, const Inst& in, const MemoryAccess& s, const u64* address) {
  return with_type(s, [&](auto v) {
    using T = decltype(v);
    for (size_t k = 0; k < in.list.size(); ++k)
      each_lane<T>(w, w.reg<T>(in.list[k]), [&](int i) {
        std::memcpy(&v, reinterpret_cast<const void*>(address[i] + k * sizeof v), sizeof v);
        return v;
      });
  });
}
bool scatter(Warp& w, const Inst& in, const MemoryAccess& s, const u64* address) {
  return with_type(s, [&](auto v) {
    for (size_t k = 0; k < in.list.size(); ++k)
      for (u32 l = w.active; l; l &= l - 1) {
        int i = std::countr_zero(l);
        v = w.reg<decltype(v)>(in.list[k])[i];
        std::memcpy(reinterpret_cast<void*>(address[i] + k * sizeof v), &v, sizeof v);
      }
  });
}

bool load_global(Warp& w, const Inst& in, const MemoryAccess& s, const u64* address) {
  u32 bytes = s.bytes();
  LaneAccess access(address, w.active, bytes);
  if (!accessible(w, access, false)) return false;
  if (is_coherent(s.order))
    for (u32 l = w.active; l; l &= l - 1) acquire_global(w, address[std::countr_zero(l)], s.order);
  bool buffered = touch_global(w, access, load_access(s.order));
  if (!buffered && gather(w, in, s, address)) return true;
  alignas(16) uint8_t data[16];
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    read_touched(w, address[i], data, bytes, buffered);
    spread(w, in, s, i, data);
  }
  return true;
}

// A plain load from the CTA's own shared memory with nothing wrong, in one go; false: not so.
bool load_shared(Warp& w, const Inst& in, const MemoryAccess& s, const u64* address) {
  SharedMemory& shared = *w.cta->shared;
  if (s.order != Order::weak || !shared.read_lanes(address, w.active, s.bytes(), w.actor))
    return false;
  u64 host[32];
  for (int i = 0; i < 32; ++i) host[i] = address[i] + reinterpret_cast<u64>(shared.data());
  if (gather(w, in, s, host)) return true;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    spread(w, in, s, i, reinterpret_cast<const uint8_t*>(host[i]));
  }
  return true;
}

void load(Warp& w, const Inst& in) {
  const auto& s = in.modifiers.as<MemoryAccess>();
  u64 address[32];
  addresses(w, in, address);
  if (is_coherent(s.order) && polls(w, address)) return;
  Space space = common_space(w, s.space, address);
  if (space == Space::global) {
    if (load_global(w, in, s, address)) return;
    count_global(w, address, w.active, s.bytes());
  }
  if (space == Space::shared) {
    count_shared(w, address, w.active, s.bytes());
    if (load_shared(w, in, s, address)) return;
  }
  alignas(16) uint8_t data[16];
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    Origin from;
    u32 undefined = read_memory(w, i, space, address[i], s.bytes(), data, s.order, &from);
    if (undefined) w.load_undefined(in, s.element, i, undefined, from);
    spread(w, in, s, i, data);
  }
}

bool store_global(Warp& w, const Inst& in, const MemoryAccess& s, const u64* address) {
  u32 bytes = s.bytes();
  LaneAccess access(address, w.active, bytes);
  if (!accessible(w, access, true)) return false;
  Access how = store_access(w, s.order);
  alignas(16) LaneValues values;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    collect(w, in, s, i, values[i].data());
  }
  touch_global(w, access, how, s.order == Order::weak ? &values : nullptr);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    write_touched(w, address[i], values[i].data(), bytes, how);
    if (is_coherent(s.order)) release_global(w, address[i]);
  }
  return true;
}

// Values of one lane that are undefined, which has been stored.
void store_undefined(Warp& w, const Inst& in, const MemoryAccess& s, Space space, u64 address,
                     int lane) {
  for (u32 k = 0; k < s.count; ++k)
    if (w.state[in.list[k].index].bad >> lane & 1)
      write_undefined(w, lane, space, address + k * s.element, s.element, in.list[k]);
}

bool store_shared(Warp& w, const Inst& in, const MemoryAccess& s, const u64* address) {
  SharedMemory& shared = *w.cta->shared;
  if (s.order != Order::weak || (w.undefined & w.active)) return false;
  if (holds_mbarrier(*w.cta, *std::min_element(address, address + 32),
                     *std::max_element(address, address + 32) + s.bytes()) ||
      !shared.write_lanes(address, w.active, s.bytes(), w.actor))
    return false;
  u64 host[32];
  for (int i = 0; i < 32; ++i) host[i] = address[i] + reinterpret_cast<u64>(shared.data());
  if (scatter(w, in, s, host)) return true;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    collect(w, in, s, i, reinterpret_cast<uint8_t*>(host[i]));
  }
  return true;
}

void store(Warp& w, const Inst& in) {
  const auto& s = in.modifiers.as<MemoryAccess>();
  u64 address[32];
  addresses(w, in, address);
  if (s.release == Release::wide) w.m->publish(*w.cta, &w);
  else if (s.release == Release::cta) w.m->publish_warp(w);
  Space space = common_space(w, s.space, address);
  bool all = false;
  if (space == Space::global) {
    if (w.undefined)
      for (const Reg& r : in.list) w.use(r, w.active);
    all = store_global(w, in, s, address);
    if (!all) count_global(w, address, w.active, s.bytes());
  } else if (space == Space::shared) {
    count_shared(w, address, w.active, s.bytes());
    all = store_shared(w, in, s, address);
  }
  if (!all) {
    alignas(16) uint8_t data[16];
    for (u32 l = w.active; l; l &= l - 1) {
      int i = std::countr_zero(l);
      collect(w, in, s, i, data);
      write_memory(w, i, space, address[i], s.bytes(), data, s.order);
      if (space != Space::global && (w.undefined >> i & 1))
        store_undefined(w, in, s, space, address[i], i);
    }
  }
  if (s.order == Order::volatile_) w.actor.tick();  // orders nothing among the warp's lanes
  else if (is_coherent(s.order)) w.release();
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
    Origin from;
    u32 undefined = f.undefined_params.find(
        lane_byte(static_cast<int>(i), static_cast<u64>(in.imm)), s.bytes(), &from);
    if (undefined) w.load_undefined(in, s.element, static_cast<int>(i), undefined, from);
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
      u64 key = lane_byte(static_cast<int>(i), static_cast<u64>(in.imm) + k * s.element);
      f.undefined_params.clear(key, s.element);
      if (!(w.undefined >> i & 1) || !(w.state[in.list[k].index].bad >> i & 1)) continue;
      if (Origin from = w.origin(in.list[k])) f.undefined_params.set(key, s.element, from);
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
  if (semantics == 4) m.order = Order::volatile_;
  // acquire at cta scope still goes through the CTA's own cache.
  if (semantics == 2 && scope > 0) m.order = Order::acquire;
  // .cg on a store is a hint for the caches, not an order.
  if (!is_load && semantics < 1) m.order = Order::weak;
  bool coherent = m.order == Order::coherent || m.order == Order::acquire;
  if (coherent && (m.space == Space::global || m.space == Space::none))
    d.program->communicates = true;
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
  const Variable* variable = d.operand(is_load ? 1 : 0).parts[0].variable;
  bool frame_param = m.space == Space::param && variable && !variable->kernel_param;
  if (frame_param) {
    out.propagates = true;
    out.run = is_load ? load_frame_param : store_frame_param;
  } else {
    out.carries = !is_load;
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
