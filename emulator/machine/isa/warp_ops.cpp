// Instructions among the lanes of a warp: shfl, vote, match, redux, elect.
#include <bit>

#include "machine/isa/families.h"
#include "machine/isa/lanes.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

// Calls f(set) for each set of lanes that passes the same member mask, with just these active.
template <typename F>
void each_set(Warp& w, const Inst& in, const Reg& s, F f) {
  const u32* masks = w.reg<u32>(s);
  if (!w.gather_sets(masks, in.ptx->text().c_str())) return;
  u32 all = w.active;
  for (u32 rest = all; rest; rest &= ~w.active) {
    u32 members = masks[std::countr_zero(rest)];
    w.active = rest & members;
    f(w.active);
  }
  w.active = all;
}

enum class Shuffle : uint8_t { up, down, bfly, idx };
void shuffle_set(Warp& w, const Inst& in) {
  const u32 *a = w.reg<u32>(in.s[0]), *b = w.reg<u32>(in.s[1]), *c = w.reg<u32>(in.s[2]);
  u32 out[32], valid = 0, undefined = 0;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u32 lane = static_cast<u32>(i), clamp = c[i] & 31, segment = c[i] >> 8 & 31, n = b[i] & 31;
    u32 max = (lane & segment) | (clamp & ~segment), min = lane & segment, j = 0;
    bool ok = false;
    switch (in.modifiers.as<Shuffle>()) {
      case Shuffle::up:
        j = lane - n;
        ok = static_cast<int32_t>(j) >= static_cast<int32_t>(max);
        break;
      case Shuffle::down:
        j = lane + n;
        ok = j <= max;
        break;
      case Shuffle::bfly:
        j = lane ^ n;
        ok = j <= max;
        break;
      case Shuffle::idx:
        j = min | (n & ~segment);
        ok = j <= max;
        break;
    }
    if (!ok) j = lane;
    if (!(w.active >> j & 1))
      fault("missing-lane", "shfl reads lane " + std::to_string(j) + ", which does not take part",
            i);
    out[i] = a[j];
    valid |= u32(ok) << i;
    undefined |= (w.undefined >> j & 1) << i;
  }
  w.undefined = undefined;
  u32* d = w.reg<u32>(in.d[0]);
  for (u32 l = w.active; l; l &= l - 1) d[std::countr_zero(l)] = out[std::countr_zero(l)];
  if (in.targets > 1) w.set_predicate(in.d[1], valid);
}
void shuffle(Warp& w, const Inst& in) {
  each_set(w, in, in.s[3], [&](u32) { shuffle_set(w, in); });
}
struct Vote {
  enum Op : uint8_t { all, any, uni, ballot } op;
  bool negated;  // the predicate
};
void vote(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<Vote>();
  u32 p = *w.reg<u32>(in.s[0]);
  if (m.negated) p = ~p;
  each_set(w, in, in.s[1], [&](u32 set) {
    u32 yes = p & set;
    if (m.op == Vote::ballot) return w.broadcast(in.d[0], yes);
    bool all = yes == set, v = m.op == Vote::all ? all : m.op == Vote::any ? yes : all || !yes;
    w.set_predicate(in.d[0], v ? kAllLanes : 0);
  });
}
template <typename T, bool All>
void match(Warp& w, const Inst& in) {
  u32 equal[32] = {};
  each_set(w, in, in.s[1], [&](u32 set) {
    const T* a = w.reg<T>(in.s[0]);
    bool all = true;
    for (u32 l = set; l; l &= l - 1) {
      int i = std::countr_zero(l);
      for (u32 k = set; k; k &= k - 1)
        if (a[i] == a[std::countr_zero(k)]) equal[i] |= k & (0 - k);
      all &= equal[i] == set;
    }
    each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int i) { return All ? all ? set : 0 : equal[i]; });
    if (in.targets > 1) w.set_predicate(in.d[1], all ? kAllLanes : 0);
  });
}
struct Reduction {
  enum Op : uint8_t { add, min, max, and_, or_, xor_ } op;
  bool is_signed;
};
u32 reduce_pair(const Reduction& m, u32 v, u32 x) {
  bool less = m.is_signed ? static_cast<int32_t>(x) < static_cast<int32_t>(v) : x < v;
  switch (m.op) {
    case Reduction::add:
      return v + x;
    case Reduction::min:
      return less ? x : v;
    case Reduction::max:
      return less ? v : x;
    case Reduction::and_:
      return v & x;
    case Reduction::or_:
      return v | x;
    default:
      return v ^ x;
  }
}
void reduce(Warp& w, const Inst& in) {
  const auto& m = in.modifiers.as<Reduction>();
  each_set(w, in, in.s[1], [&](u32 set) {
    const u32* a = w.reg<u32>(in.s[0]);
    u32 v = a[std::countr_zero(set)];
    for (u32 l = set & (set - 1); l; l &= l - 1) v = reduce_pair(m, v, a[std::countr_zero(l)]);
    w.broadcast(in.d[0], v);
  });
}
void active_mask(Warp& w, const Inst& in) { w.broadcast(in.d[0], w.active); }
void elect(Warp& w, const Inst& in) {
  // PTX leaves the choice open; CUTLASS counts on the lowest lane, as the hardware chooses.
  each_set(w, in, in.s[0], [&](u32 set) {
    w.broadcast(in.d[0], static_cast<u32>(std::countr_zero(set)));
    w.set_predicate(in.d[1], set & (0 - set));
  });
}
void warp_barrier(Warp& w, const Inst& in) {
  if (w.gather_sets(w.reg<u32>(in.s[0]), in.ptx->text().c_str())) w.release();
}

// d or d|p
void add_target_pair(Decoder& d) {
  Inst& out = *d.out;
  const PtxOperand& o = d.operand(0);
  if (o.kind != PtxOperand::Kind::pair) return d.add_target(0, 32);
  out.d[out.targets++] = d.target(o.parts[0], 32);
  out.d[out.targets++] = d.target(o.parts[1], 1);
}

bool decode_shfl(Decoder& d) {
  if (!d.take("sync")) d.unsupported("without .sync");
  int how = d.take_one("up down bfly idx");
  if (how < 0) d.unsupported();
  d.out->modifiers.store(static_cast<Shuffle>(how));
  d.take("b32");
  d.finish();
  add_target_pair(d);
  for (size_t i = 1; i <= 4; ++i) d.add_source(i, 32);
  d.out->propagates = true;
  d.out->run = shuffle;
  return true;
}

bool decode_vote(Decoder& d) {
  if (!d.take("sync")) d.unsupported("without .sync");
  int op = d.take_one("all any uni ballot");
  if (op < 0) d.unsupported();
  d.take("pred"), d.take("b32");
  d.finish();
  d.add_target(0, op == Vote::ballot ? 32 : 1);
  d.out->modifiers.store(Vote{static_cast<Vote::Op>(op), d.add_predicate(1)});
  d.add_source(2, 32);
  d.out->run = vote;
  return true;
}

bool decode_match(Decoder& d) {
  d.take("sync");
  bool all = d.take_one("any all") == 1;
  Type t = d.take_type();
  d.finish();
  add_target_pair(d);
  d.add_source(1, t.bits), d.add_source(2, 32);
  d.out->run = t.bits == 64 ? (all ? match<u64, true> : match<u64, false>)
                            : (all ? match<u32, true> : match<u32, false>);
  return true;
}

bool decode_redux(Decoder& d) {
  d.take("sync");
  int op = d.take_one("add min max and or xor");
  Type t = d.take_type();
  d.finish();
  if (op < 0 || t.bits != 32 || t.kind == Kind::real) d.unsupported();
  d.out->modifiers.store(Reduction{static_cast<Reduction::Op>(op), t.is_signed()});
  d.add_target(0, 32), d.add_source(1, 32), d.add_source(2, 32);
  d.out->run = reduce;
  return true;
}

bool decode_elect(Decoder& d) {
  d.take("sync");
  d.finish();
  add_target_pair(d);
  if (d.out->targets != 2) throw PtxError(d.in->line, "elect.sync needs d|p");
  d.add_source(1, 32);
  d.out->run = elect;
  return true;
}

}  // namespace

bool decode_warp(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "shfl") return decode_shfl(d);
  if (op == "vote") return decode_vote(d);
  if (op == "match") return decode_match(d);
  if (op == "redux") return decode_redux(d);
  if (op == "elect") return decode_elect(d);
  if (op == "activemask") {
    d.take("b32");
    d.finish();
    d.add_target(0, 32);
    out.run = active_mask;
    return true;
  }
  if (op == "bar" && d.in->has("warp")) {
    d.take("warp"), d.take("sync");
    d.finish();
    d.add_source(0, 32);
    out.run = warp_barrier;
    return true;
  }
  return false;
}

}  // namespace l4k::emu
