// Instructions among the lanes of a warp: shfl, vote, match, redux, elect.
#include <bit>
#include <cstring>

#include "machine/decode.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

u32 member_mask(Warp& w, const Src& s) { return w.reg<u32>(s)[std::countr_zero(w.active)]; }

bool members(Warp& w, const Inst& in, const Src& s) {
  u32 mask = member_mask(w, s);
  const u32* masks = w.reg<u32>(s);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    if (!(masks[i] >> i & 1))
      fault("missing-lane", "the lane is not in its own member mask " + hex(masks[i]), i);
  }
  return w.gather(mask & ~w.dead, in.ptx->text().c_str());
}

// in.a: 0 up, 1 down, 2 bfly, 3 idx
void shuffle(Warp& w, const Inst& in) {
  if (!members(w, in, in.s[3])) return;
  const u32 *a = w.reg<u32>(in.s[0]), *b = w.reg<u32>(in.s[1]), *c = w.reg<u32>(in.s[2]);
  u32 out[32], valid = 0;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    u32 lane = static_cast<u32>(i), clamp = c[i] & 31, segment = c[i] >> 8 & 31, n = b[i] & 31;
    u32 max = (lane & segment) | (clamp & ~segment), min = lane & segment, j = 0;
    bool ok = true;
    switch (in.a) {
      case 0:
        j = lane - n;
        ok = static_cast<int32_t>(j) >= static_cast<int32_t>(max);
        break;
      case 1:
        j = lane + n;
        ok = j <= max;
        break;
      case 2:
        j = lane ^ n;
        ok = j <= max;
        break;
      default:
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
  }
  u32* d = w.reg<u32>(in.d[0]);
  for (u32 l = w.active; l; l &= l - 1) d[std::countr_zero(l)] = out[std::countr_zero(l)];
  if (in.targets > 1) {
    u32& p = *w.reg<u32>(in.d[1]);
    p = (p & ~w.active) | valid;
  }
}
// in.a: 0 all, 1 any, 2 uni, 3 ballot; in.b: predicate is negated
void vote(Warp& w, const Inst& in) {
  if (!members(w, in, in.s[1])) return;
  u32 mask = member_mask(w, in.s[1]), p = *w.reg<u32>(in.s[0]);
  if (in.b) p = ~p;
  p &= mask;
  if (in.a == 3) {
    each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int) { return p; });
    return;
  }
  bool v = in.a == 0 ? p == mask : in.a == 1 ? p != 0 : p == mask || p == 0;
  u32& d = *w.reg<u32>(in.d[0]);
  d = (d & ~w.active) | (v ? w.active : 0);
}
template <typename T, bool All>
void match(Warp& w, const Inst& in) {
  if (!members(w, in, in.s[1])) return;
  const T* a = w.reg<T>(in.s[0]);
  u32 mask = member_mask(w, in.s[1]), same = 0, out[32] = {};
  for (u32 l = mask; l; l &= l - 1) {
    int i = std::countr_zero(l);
    for (u32 k = mask; k; k &= k - 1)
      if (std::memcmp(&a[i], &a[std::countr_zero(k)], sizeof(T)) == 0)
        out[i] |= 1u << std::countr_zero(k);
    same |= u32(out[i] == mask) << i;
  }
  bool all = same == mask;
  each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int i) { return All ? (all ? mask : 0) : out[i]; });
  if (in.targets > 1) {
    u32& p = *w.reg<u32>(in.d[1]);
    p = (p & ~w.active) | (all ? w.active : 0);
  }
}
// in.a: 0 add, 1 min, 2 max, 3 and, 4 or, 5 xor; in.b: signed
void reduce(Warp& w, const Inst& in) {
  if (!members(w, in, in.s[1])) return;
  const u32* a = w.reg<u32>(in.s[0]);
  u32 mask = member_mask(w, in.s[1]), v = a[std::countr_zero(mask)];
  for (u32 l = mask & (mask - 1); l; l &= l - 1) {
    u32 x = a[std::countr_zero(l)];
    bool less = in.b ? static_cast<int32_t>(x) < static_cast<int32_t>(v) : x < v;
    switch (in.a) {
      case 0:
        v += x;
        break;
      case 1:
        v = less ? x : v;
        break;
      case 2:
        v = less ? v : x;
        break;
      case 3:
        v &= x;
        break;
      case 4:
        v |= x;
        break;
      default:
        v ^= x;
        break;
    }
  }
  each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int) { return v; });
}
void active_mask(Warp& w, const Inst& in) {
  each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int) { return w.active; });
}
void elect(Warp& w, const Inst& in) {
  if (!members(w, in, in.s[0])) return;
  // PTX leaves the choice open; CUTLASS counts on the lowest lane, as the hardware chooses.
  u32 leader = static_cast<u32>(std::countr_zero(member_mask(w, in.s[0])));
  each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int) { return leader; });
  u32& p = *w.reg<u32>(in.d[1]);
  p = (p & ~w.active) | (1u << leader & w.active);
}
void warp_barrier(Warp& w, const Inst& in) {
  if (members(w, in, in.s[0])) w.release();
}

}  // namespace

bool decode_warp(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  auto pair = [&](size_t i) {
    const PtxOperand& o = d.operand(i);
    if (o.kind == PtxOperand::Kind::pair) {
      out.d[out.targets++] = d.target(o.parts[0], 32);
      out.d[out.targets++] = d.target(o.parts[1], 1);
    } else {
      d.add_target(i, 32);
    }
  };
  if (op == "shfl") {
    if (!d.take("sync")) d.unsupported("without .sync");
    out.a = static_cast<u32>(d.take_one("up down bfly idx"));
    d.take("b32");
    d.finish();
    pair(0);
    for (size_t i = 1; i <= 4; ++i) d.add_source(i, 32);
    out.propagates = true;
    out.run = shuffle;
    return true;
  }
  if (op == "vote") {
    if (!d.take("sync")) d.unsupported("without .sync");
    out.a = static_cast<u32>(d.take_one("all any uni ballot"));
    d.take("pred"), d.take("b32");
    d.finish();
    d.add_target(0, out.a == 3 ? 32 : 1);
    PtxOperand p = d.operand(1);
    out.b = p.negated;
    p.negated = false;
    out.s[out.sources++] = d.source(p, 1);
    d.add_source(2, 32);
    out.run = vote;
    return true;
  }
  if (op == "match") {
    d.take("sync");
    bool all = d.take_one("any all") == 1;
    Type t = d.take_type();
    d.finish();
    pair(0);
    d.add_source(1, t.bits), d.add_source(2, 32);
    out.run = t.bits == 64 ? (all ? match<u64, true> : match<u64, false>)
                           : (all ? match<u32, true> : match<u32, false>);
    return true;
  }
  if (op == "redux") {
    d.take("sync");
    out.a = static_cast<u32>(d.take_one("add min max and or xor"));
    Type t = d.take_type();
    d.finish();
    if (t.bits != 32 || t.kind == Kind::real) d.unsupported();
    out.b = t.is_signed();
    d.add_target(0, 32), d.add_source(1, 32), d.add_source(2, 32);
    out.run = reduce;
    return true;
  }
  if (op == "activemask") {
    d.take("b32");
    d.finish();
    d.add_target(0, 32);
    out.run = active_mask;
    return true;
  }
  if (op == "elect") {
    d.take("sync");
    d.finish();
    pair(0);
    if (out.targets != 2) throw PtxError(d.in->line, "elect.sync needs d|p");
    d.add_source(1, 32);
    out.run = elect;
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
