// atom and red at every scope, fences.
#include <bit>
#include <cstring>

#include "machine/core/memory.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

enum Op : uint8_t { kAnd, kOr, kXor, kCas, kExch, kAdd, kInc, kDec, kMin, kMax };
constexpr const char* kOps = "and or xor cas exch add inc dec min max";

u64 half_pair(Format f, HalfOp op, u64 a, u64 b) {
  return half_op(f, op, static_cast<uint16_t>(a), static_cast<uint16_t>(b)) |
         u64{half_op(f, op, static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16))} << 16;
}

u64 apply(Op op, Kind kind, u32 bits, u64 a, u64 b, u64 c) {
  u64 mask = bits == 64 ? ~u64{0} : (u64{1} << bits) - 1;
  auto sign = [&](u64 v) {
    return bits == 64 ? static_cast<int64_t>(v) : int64_t{static_cast<int32_t>(v)};
  };
  switch (op) {
    case kAnd:
      return a & b;
    case kOr:
      return a | b;
    case kXor:
      return a ^ b;
    case kCas:
      return a == b ? c : a;
    case kExch:
      return b;
    case kInc:
      return a >= b ? 0 : a + 1;
    case kDec:
      return a == 0 || a > b ? b : a - 1;
    default:
      break;
  }
  HalfOp h = op == kAdd ? HalfOp::add : op == kMin ? HalfOp::min : HalfOp::max;
  if (kind == Kind::packed_f16) return half_pair(Format::f16, h, a, b);
  if (kind == Kind::packed_bf16) return half_pair(Format::bf16, h, a, b);
  if (kind == Kind::bf16)
    return half_op(Format::bf16, h, static_cast<uint16_t>(a), static_cast<uint16_t>(b));
  if (kind == Kind::real && bits == 16)
    return half_op(Format::f16, h, static_cast<uint16_t>(a), static_cast<uint16_t>(b));
  if (kind == Kind::real && bits == 32) {
    float x = from_bits(static_cast<u32>(a)), y = from_bits(static_cast<u32>(b));
    return emu::bits(f32_add(x, y));
  }
  if (kind == Kind::real)
    return std::bit_cast<u64>(std::bit_cast<double>(a) + std::bit_cast<double>(b));
  if (op == kAdd) return (a + b) & mask;
  bool less = kind == Kind::sint ? sign(a) < sign(b) : a < b;
  return (op == kMin) == less ? a : b;
}

struct Atomic {
  Op op;
  Kind kind;
  uint8_t bits, count;  // of an element; elements per lane
  Space space;
  bool acquire, release, wide;  // wide: of a scope wider than the CTA
  bool returns;                 // atom, else red
  u32 element() const { return bits / 8u; }
  u32 bytes() const { return element() * count; }
};

struct Target {
  uint8_t* data;
  u64 key;  // of the flag that passes clocks on
};

// An exchange depends on nothing that it replaces; its result is what was there.
void meet_undefined(Warp& w, const Inst& in, const Atomic& m, u32 undefined, const Origin& from,
                    int lane) {
  if (m.op != kExch) return w.use_undefined(from, "an atomic operation on", lane);
  u32 element = (1u << m.element()) - 1;
  for (u32 k = 0; k < m.count; ++k)
    if (undefined >> k * m.element() & element)
      w.undefined_results.push_back({in.d[k], 1u << lane, from});
}

Target shared_target(Warp& w, const Inst& in, const Atomic& m, u64 address, int lane) {
  SharedPlace place = shared_place(w, address, lane);
  u64 key = u64{place.cta->rank} << 32 | place.offset;
  acquire_flag(w, key);
  check_no_mbarrier(*place.cta, place.offset, m.bytes(), lane);
  SharedMemory& shared = *place.cta->shared;
  if (u32 undefined = shared.strong_read(place.offset, m.bytes(), w.actor, lane, Writer::atomic))
    meet_undefined(w, in, m, undefined, w.read_undefined(shared, place.offset, m.bytes(), lane),
                   lane);
  shared.strong_write(place.offset, m.bytes(), w.actor, lane, Writer::atomic);
  return {shared.data() + place.offset, key};
}

Target global_target(Warp& w, const Atomic& m, u64 address, int lane) {
  uint8_t* p = global_pointer(w, lane, address, m.bytes(), true);
  if (w.m->buffers_stores()) check_published(w, address, m.bytes(), "an atomic access to", lane);
  note_global(w, address, m.bytes(), Access::atomic, lane);
  acquire_flag(w, address);
  acquire_from_grid(w, address, m.acquire && m.wide);
  release_to_grid(w, address, m.release && m.wide);
  if (w.m->buffers_stores() && !(w.stores.empty() && w.cta->stores.empty())) {
    // The thread's own earlier store to the same place comes first.
    w.cta->stores.read(address, p, m.bytes());
    w.stores.read(address, p, m.bytes());
    w.cta->stores.erase(address, m.bytes());
    w.stores.erase(address, m.bytes());
  }
  auto mask = static_cast<u32>(((u64{1} << m.bytes()) - 1) << (address & 31));
  w.m->sectors.at(address).unpublished &= ~mask;
  return {p, address};
}

// Whether memory has changed.
bool update(Warp& w, const Inst& in, const Atomic& m, uint8_t* p, int lane) {
  bool changed = false;
  u32 bytes = m.element(), register_bytes = std::max(bytes, 2u);
  for (u32 k = 0; k < m.count; ++k) {
    u64 old = 0;
    std::memcpy(&old, p + k * bytes, bytes);
    u64 v = apply(m.op, m.kind, m.bits, old, get_lane(w, in.list[k], register_bytes, lane),
                  m.op == kCas ? get_lane(w, in.list[m.count + k], register_bytes, lane) : 0);
    changed |= v != old;
    std::memcpy(p + k * bytes, &v, bytes);
    if (m.returns) put_lane(w, in.d[k], register_bytes, lane, old);
  }
  return changed;
}

// A compare-and-swap that fails in a loop is a poll.
void note_poll(Warp& w, const Inst& in, const Atomic& m, bool changed) {
  u64 key = w.pc, &progress = w.m->progress;
  bool same = !changed && w.poll_pc == w.pc && w.poll_key == key && w.poll_progress == progress;
  w.poll_pc = w.pc, w.poll_key = key;
  if (changed) ++progress;
  w.poll_progress = progress;
  w.poll_count = same ? w.poll_count + 1 : 0;
  if (w.poll_count < 4 || w.mask != w.live) return;
  // The result stands; the warp just lets others run before it tries again.
  w.poll_count = 0;
  ++w.pc;
  for (u32 l = w.mask; l; l &= l - 1) w.lane_pc[std::countr_zero(l)] = w.pc;
  if (m.returns)
    for (u32 k = 0; k < m.count; ++k) w.written(in.d[k], w.active);
  w.park(Wait::poll);
}

// `list`: operands in groups of count; d: results.
void atomic(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<Atomic>();
  u64 address[32];
  addresses(w, in, address);
  if (m.release) m.wide ? w.m->publish(*w.cta, &w) : w.m->publish_warp(w);
  u64 probe = address[std::countr_zero(w.active)];
  Space counted = m.space == Space::none ? generic_space(&probe) : m.space;
  if (counted == Space::global) count_global(w, address, w.active, m.bytes());
  else count_shared(w, address, w.active, m.bytes());
  if (m.wide && counted == Space::global)  // a CTA's scope orders nothing against the grid
    w.cta->cluster->launch->released[w.cta->linear] = w.m->instructions;
  bool changed = false;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 at = address[i];
    Space s = m.space == Space::none ? generic_space(&at) : m.space;
    check_aligned(at, m.bytes(), i);
    Target target =
        s == Space::shared ? shared_target(w, in, m, at, i) : global_target(w, m, at, i);
    changed |= update(w, in, m, target.data, i);
    release_flag(w, target.key);
  }
  w.release();
  if (m.op == kExch && m.returns) {
    for (u32 k = 0; k < m.count; ++k) w.written(in.d[k], w.active);
    w.settle_loads();
  }
  note_poll(w, in, m, changed);
}

struct Fence {
  bool wide, cta;                   // scope: wider than the CTA, the CTA
  bool shared_proxy, global_proxy;  // proxy fences
  bool mbarrier_init;
};
void fence(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<Fence>();
  if (m.mbarrier_init)
    for (auto& [offset, b] : w.cta->mbarriers) b.fenced_phase = w.cta->cluster->barrier_phase;
  if (m.wide) {
    w.m->publish(*w.cta, &w);
    w.visibility.acquired = std::max(w.visibility.acquired, w.visibility.observed);
  } else if (m.cta) {
    w.m->publish_warp(w);
  }
  if (m.global_proxy) {
    w.m->drain(*w.cta, &w);
    w.proxied = w.cta->cluster->launch->proxied[w.cta->linear] = w.m->instructions;
  }
  if (m.shared_proxy) {
    join(w.actor.proxied, w.actor.seen);
    w.release();
  }
}

bool decode_fence(Decoder& d) {
  Fence m{};
  if (d.in->opcode == "membar") {
    int scope = d.take_one("cta gl sys");
    if (d.take("proxy")) d.take("alias");  // between names of one place in memory
    m.wide = scope > 0, m.cta = !m.wide;
    d.program->communicates |= m.wide;
  } else if (d.take("mbarrier_init")) {
    d.take("release"), d.take("cluster");
    m.mbarrier_init = true;
  } else if (d.take("proxy")) {
    int which = d.take_one("async tensormap::generic alias async::generic");
    if (which < 0) d.unsupported();
    // One direction of async is taken for both.
    if (which == 3)
      which = 0, d.take_one("sync_restrict::shared::cta sync_restrict::shared::cluster");
    int space = which ? -1 : d.take_one("global shared::cta shared::cluster");
    m.wide = which == 1;
    m.global_proxy = which == 0 && space <= 0;
    m.shared_proxy = which == 0 && space != 0;
    d.take_one("acquire release"), d.take_one("cta cluster gpu sys");
  } else {
    d.take_one("sc acq_rel acquire release");
    int scope = d.take_one("cta cluster gpu sys");
    m.wide = scope > 0, m.cta = !m.wide;
    d.program->communicates |= scope > 1;
    d.take_one("sync_restrict::shared::cta sync_restrict::shared::cluster");
  }
  d.finish();
  d.out->modifiers.store(m);
  d.out->run = fence;
  return true;
}

Atomic take_atomic(Decoder& d, bool returns) {
  Atomic m{};
  int sem = d.take_one("relaxed acquire release acq_rel"),
      scope = d.take_one("cta cluster gpu sys");
  int space = d.take_one("global shared shared::cta shared::cluster"), op = d.take_one(kOps);
  if (op < 0) d.unsupported("operation");
  d.take("noftz"), d.take("L2::cache_hint");
  int vector = d.take_one("v2 v4 v8");
  Type t = d.take_type();
  d.finish();
  m.op = static_cast<Op>(op), m.kind = t.kind, m.bits = static_cast<uint8_t>(t.bits);
  m.count = static_cast<uint8_t>(vector < 0 ? 1 : 2u << vector);
  m.space = space < 0 ? Space::none : space == 0 ? Space::global : Space::shared;
  m.acquire = sem == 1 || sem == 3, m.release = sem == 2 || sem == 3;
  m.wide = scope != 0;
  m.returns = returns;
  bool wide_float = t.kind == Kind::real && t.bits >= 32;
  if ((t.is_float() && op <= kXor) || (wide_float && op != kAdd && op != kExch) || t.bits == 128 ||
      t.bits == 8 || (m.count > 2 && returns))
    d.unsupported();
  return m;
}

}  // namespace

bool decode_atomic(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "membar" || op == "fence") return decode_fence(d);
  if (op != "atom" && op != "red") return false;
  if (d.in->has("async")) d.unsupported();
  Atomic m = take_atomic(d, op == "atom");
  size_t at = 0;
  if (m.returns) {
    const PtxOperand& r = d.operand(at++);
    if (r.kind == PtxOperand::Kind::group)
      for (const auto& p : r.parts) out.d[out.targets++] = d.target(p, m.bits);
    else out.d[out.targets++] = d.target(r, m.bits);
    if (out.targets != m.count) throw PtxError(d.in->line, "atom: wrong number of results");
  }
  d.add_address(at++, m.space);
  d.add_list(d.operand(at++), m.bits, ListUse::read, m.kind == Kind::real);
  if (out.list.size() != m.count)
    throw PtxError(d.in->line, d.in->text() + ": wrong number of operands");
  if (m.op == kCas) d.add_list(d.operand(at++), m.bits, ListUse::read);
  d.program->communicates |= m.space != Space::shared;
  out.modifiers.store(m);
  if (m.op == kExch) out.targets = 0;  // it says itself which lanes of them are defined
  out.run = atomic;
  return true;
}

}  // namespace l4k::emu
