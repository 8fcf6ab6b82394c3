// atom and red at every scope, fences.
#include <bit>
#include <cstring>

#include "machine/decode.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

enum Op : u32 { kAnd, kOr, kXor, kCas, kExch, kAdd, kInc, kDec, kMin, kMax };
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

// in.a: Op | Kind << 8 | bits << 16; in.b: count | Space << 8 | order << 16 (1 acquire, 2 release,
// 4 wider than the CTA) ; in.list: results (atom), operands in groups of count.
void atomic(Warp& w, const Inst& in) {
  Machine& m = *w.m;
  auto op = static_cast<Op>(in.a & 255);
  auto kind = static_cast<Kind>(in.a >> 8 & 255);
  u32 bits = in.a >> 16, bytes = bits / 8, count = in.b & 255, order = in.b >> 16;
  auto space = static_cast<Space>(in.b >> 8 & 255);
  u64 address[32];
  addresses(w, in, in.c, address);
  if (order & 2) order & 4 ? m.publish(*w.cta, &w) : m.publish_warp(w);
  u64 probe = address[std::countr_zero(w.active)];
  Space counted = space == Space::none ? generic_space(&probe) : space;
  if (counted == Space::global) count_global(w, address, w.active, bytes * count);
  else count_shared(w, address, w.active, bytes * count);
  bool returns = in.target;                       // atom
  if ((order & 4) && counted == Space::global) {  // a CTA's scope orders nothing against the grid
    w.cta->cluster->launch->released[w.cta->linear] = m.instructions;
  }
  // A compare-and-swap that fails in a loop is a poll.
  bool changed = false;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u64 at = address[i];
    Space s = space == Space::none ? generic_space(&at) : space;
    check_aligned(at, bytes * count, i);
    uint8_t* p;
    u64 key = at;
    if (s == Space::shared) {
      SharedPlace place = shared_place(w, at, i);
      key = u64{place.cta->rank} << 32 | place.offset;
      acquire_flag(w, key);
      check_no_mbarrier(*place.cta, place.offset, bytes * count, i);
      place.cta->shared->atomic(place.offset, bytes * count, w.actor, i, true, true);
      p = place.cta->shared->data() + place.offset;
    } else {
      p = global_pointer(w, i, at, bytes * count, true);
      if (m.late()) check_published(w, at, bytes * count, "an atomic access to", i);
      note_global(w, at, bytes * count, Access::atomic, i);
      acquire_flag(w, key);
      acquire_from_grid(w, at, (order & 1) && (order & 4));
      release_to_grid(w, at, (order & 2) && (order & 4));
      if (m.late() && !(w.stores.empty() && w.cta->stores.empty())) {
        // The thread's own earlier store to the same place comes first.
        w.cta->stores.read(at, p, bytes * count);
        w.stores.read(at, p, bytes * count);
        w.cta->stores.erase(at, bytes * count);
        w.stores.erase(at, bytes * count);
      }
      Sector& sector = m.sectors.at(at);
      auto mask = static_cast<u32>(((u64{1} << (bytes * count)) - 1) << (at & 31));
      sector.unpublished &= ~mask;
    }
    for (u32 k = 0; k < count; ++k) {
      u64 old = 0;
      std::memcpy(&old, p + k * bytes, bytes);
      const Src& b = in.list[k];
      u32 reg = std::max(bytes, 2u);
      u64 v = apply(op, kind, bits, old, get_lane(w, b, reg, i),
                    op == kCas ? get_lane(w, in.list[count + k], reg, i) : 0);
      changed |= v != old;
      std::memcpy(p + k * bytes, &v, bytes);
      if (returns) put_lane(w, in.d[k], reg, i, old);
    }
    release_flag(w, key);
  }
  w.release();
  u64 key = w.pc;
  bool same = !changed && w.poll_pc == w.pc && w.poll_key == key && w.poll_progress == m.progress;
  w.poll_pc = w.pc, w.poll_key = key;
  if (changed) ++m.progress;
  w.poll_progress = m.progress;
  w.poll_count = same ? w.poll_count + 1 : 0;
  // The result stands; the warp just lets others run before it tries again.
  if (w.poll_count >= 4 && w.mask == w.live) {
    w.poll_count = 0;
    ++w.pc;
    for (u32 l = w.mask; l; l &= l - 1) w.lane_pc[std::countr_zero(l)] = w.pc;
    if (returns)
      for (u32 k = 0; k < count; ++k) w.written(in.d[k], w.active);
    w.park(Wait::poll);
  }
}

// in.a: 1 wider than the CTA, 2 proxy fence of shared memory, 4 of global memory, 8 mbarrier init,
// 16 within the CTA
void fence(Warp& w, const Inst& in) {
  if (in.a & 8)
    for (auto& [offset, b] : w.cta->mbarriers) b.fenced_phase = w.cta->cluster->barrier_phase;
  if (in.a & 1) {
    w.m->publish(*w.cta, &w);
    w.sight.acquired = std::max(w.sight.acquired, w.sight.observed);
  } else if (in.a & 16) {
    w.m->publish_warp(w);
  }
  if (in.a & 4) {
    w.m->drain(*w.cta, &w);
    w.proxied = w.cta->cluster->launch->proxied[w.cta->linear] = w.m->instructions;
  }
  if (in.a & 2) {
    for (size_t i = 0; i < w.actor.seen.size(); ++i)
      w.actor.proxied[i] = std::max(w.actor.proxied[i], w.actor.seen[i]);
    w.release();
  }
}

}  // namespace

bool decode_atomic(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "membar") {
    int scope = d.take_one("cta gl sys");
    if (d.take("proxy")) d.unsupported();
    d.finish();
    out.a = scope > 0 ? 1 : 16;
    out.run = fence;
    return true;
  }
  if (op == "fence") {
    if (d.take("mbarrier_init")) {
      d.take("release"), d.take("cluster");
      out.a = 8;
    } else if (d.take("proxy")) {
      int which = d.take_one("async tensormap::generic");
      if (which < 0) d.unsupported();
      int space = which ? -1 : d.take_one("global shared::cta shared::cluster");
      out.a = which ? 1 : space < 0 ? 6 : space ? 2 : 4;
      d.take_one("acquire release"), d.take_one("cta cluster gpu sys");
    } else {
      d.take_one("sc acq_rel acquire release");
      out.a = d.take_one("cta cluster gpu sys") > 0 ? 1 : 16;
      d.take_one("sync_restrict::shared::cta sync_restrict::shared::cluster");
    }
    d.finish();
    out.run = fence;
    return true;
  }
  if (op != "atom" && op != "red") return false;
  if (d.in->has("async")) d.unsupported();
  int sem = d.take_one("relaxed acquire release acq_rel"),
      scope = d.take_one("cta cluster gpu sys");
  int sp = d.take_one("global shared shared::cta shared::cluster");
  int o = d.take_one(kOps);
  if (o < 0) d.unsupported("operation");
  d.take("noftz");
  bool hint = d.take("L2::cache_hint");
  int vector = d.take_one("v2 v4 v8");
  Type t = d.take_type();
  d.finish();
  u32 count = vector < 0 ? 1 : 2u << vector;
  bool is_float = t.kind == Kind::real || t.kind == Kind::bf16 || t.kind == Kind::packed_f16 ||
                  t.kind == Kind::packed_bf16;
  bool bitwise = static_cast<u32>(o) <= kXor;
  if ((is_float && bitwise) ||
      (t.kind == Kind::real && t.bits >= 32 && static_cast<u32>(o) != kAdd &&
       static_cast<u32>(o) != kExch) ||
      t.bits == 128 || t.bits == 8 || (count > 2 && op == "atom"))
    d.unsupported();
  u32 order = (sem == 1 || sem == 3 ? 1u : 0) | (sem == 2 || sem == 3 ? 2u : 0) |
              (scope > 0 || scope < 0 ? 4u : 0);
  Space space = sp < 0 ? Space::none : sp == 0 ? Space::global : Space::shared;
  out.a = static_cast<u32>(o) | static_cast<u32>(t.kind) << 8 | t.bits << 16;
  out.b = count | static_cast<u32>(space) << 8 | order << 16;
  size_t at = 0;
  out.target = op == "atom";
  if (op == "atom") {
    const PtxOperand& r = d.operand(at++);
    if (r.kind == PtxOperand::Kind::group)
      for (const auto& p : r.parts) out.d[out.targets++] = d.target(p, t.bits);
    else out.d[out.targets++] = d.target(r, t.bits);
    if (out.targets != count) throw PtxError(d.in->line, "atom: wrong number of results");
  }
  d.add_address(at++, space);
  d.add_list(d.operand(at++), t.bits, 1, t.kind == Kind::real);
  if (out.list.size() != count)
    throw PtxError(d.in->line, d.in->text() + ": wrong number of operands");
  if (static_cast<u32>(o) == kCas) d.add_list(d.operand(at++), t.bits, 1);
  (void)hint;
  out.run = atomic;
  return true;
}

}  // namespace l4k::emu
