// Barriers of CTAs and clusters, dependent launches, the register pool.
#include <bit>

#include "machine/decode.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;

void acquire(Warp& w, const Clock& seen, const Clock& proxied) {
  u32 own = w.actor.seen[w.actor.id];
  join(w.actor.seen, seen);
  join(w.actor.proxied, proxied);
  w.actor.seen[w.actor.id] = own;
}

// in.a: 0 sync, 1 arrive, 2 red.popc, 3 red.and, 4 red.or; in.b: predicate negated, in.c: has count
void finish_red(Warp& w, const Inst& in, const NamedBarrier& b) {
  if (in.a < 2) return;
  if (in.a == 2) {
    each_lane<u32>(w, w.reg<u32>(in.d[0]), [&](int) { return b.red_count; });
  } else {
    bool v = in.a == 3 ? b.red_count == b.red_total : b.red_count != 0;
    u32& d = *w.reg<u32>(in.d[0]);
    d = (d & ~w.active) | (v ? w.active : 0);
  }
  w.written(in.d[0], w.active);
}

void complete(NamedBarrier& b) {
  for (Warp* w : b.waiting) {
    acquire(*w, b.seen, b.proxied);
    w->sight.join(b.sight);
    finish_red(*w, w->program->code[w->pc - 1], b);
    w->wake();
  }
  b.waiting.clear();
  b.arrived = b.red_count = b.red_total = 0;
  b.sight = {};
  b.seen.assign(b.seen.size(), 0);
  b.proxied.assign(b.proxied.size(), 0);
}

void barrier(Warp& w, const Inst& in) {
  u32 all = ~w.dead;
  if (all & ~w.live)
    fault("divergent-barrier", "a barrier inside a call that only some lanes made");
  try {
    if (!w.gather(all, in.ptx->text().c_str())) return;
  } catch (Fault& f) {
    f.kind = "divergent-barrier";
    throw;
  }
  u32 id = w.reg<u32>(in.s[0])[std::countr_zero(all)];
  u32 count = in.c ? w.reg<u32>(in.s[1])[std::countr_zero(all)] : 0;
  if (id > 15)
    fault("barrier-mismatch", "barrier " + std::to_string(id) + " does not exist: 0 to 15 do");
  Cta& cta = *w.cta;
  if (in.c && (count == 0 || count % 32 || count > cta.warps.size() * 32))
    fault("barrier-mismatch", "barrier " + std::to_string(id) + " counts " + std::to_string(count) +
                                  " threads: a multiple of 32 up to the CTA's " +
                                  std::to_string(cta.warps.size() * 32) + " is needed");
  NamedBarrier& b = cta.barriers[id];
  if (b.arrived && b.expected != count)
    fault("barrier-mismatch", "barrier " + std::to_string(id) + " is used with " +
                                  std::to_string(count) +
                                  " threads while another warp uses it with " +
                                  std::to_string(b.expected) + " (0: the whole CTA)");
  b.expected = count;
  ++w.counters().waits;
  if (in.a >= 2) {
    u32 p = *w.reg<u32>(in.s[in.sources - 1]);
    if (in.b) p = ~p;
    b.red_count += static_cast<u32>(std::popcount(p & all));
    b.red_total += static_cast<u32>(std::popcount(all));
  }
  join(b.seen, w.actor.seen);
  join(b.proxied, w.actor.proxied);
  b.sight.join(w.sight);
  w.m->publish_warp(w);
  w.release();
  ++w.m->progress;
  b.arrived += 32;
  u32 expected = count ? count : cta.running * 32;
  bool last = b.arrived >= expected;
  if (in.a == 1) {
    if (last) complete(b);
    return;
  }
  if (last) {
    acquire(w, b.seen, b.proxied);
    w.sight = b.sight;
    finish_red(w, in, b);
    complete(b);
    return;
  }
  b.waiting.push_back(&w);
  w.wait_barrier = id;
  ++w.pc;
  w.park(Wait::barrier);
}

void complete_cluster(Cluster& c) {
  ++c.barrier_phase;
  c.barrier_arrived = 0;
  c.done_seen = c.seen;
  c.done_proxied = c.proxied;
  c.seen.assign(c.actors, 0);
  c.proxied.assign(c.actors, 0);
  for (Warp* w : c.barrier_waiting) w->wake();
  c.barrier_waiting.clear();
}

void cluster_arrive(Warp& w, const Inst& in) {  // in.a: relaxed
  if (!w.gather(~w.dead, "barrier.cluster.arrive")) return;
  Cluster& c = *w.cta->cluster;
  if (w.cluster_arrived) fault("cluster-barrier", "barrier.cluster.arrive twice without a wait");
  w.cluster_arrived = true;
  w.cluster_phase = c.barrier_phase;
  if (!in.a) {
    join(c.seen, w.actor.seen);
    join(c.proxied, w.actor.proxied);
    w.m->publish(*w.cta, &w);
    w.release();
  }
  ++w.m->progress;
  if (++c.barrier_arrived >= c.running) complete_cluster(c);
}
void cluster_wait(Warp& w, const Inst&) {
  if (!w.gather(~w.dead, "barrier.cluster.wait")) return;
  Cluster& c = *w.cta->cluster;
  if (!w.cluster_arrived) fault("cluster-barrier", "barrier.cluster.wait without an arrive");
  if (c.barrier_phase == w.cluster_phase) {
    c.barrier_waiting.push_back(&w);
    return w.park(Wait::cluster_barrier);
  }
  ++w.counters().waits;
  w.cluster_arrived = false;
  w.cluster_passed = w.cluster_phase;
  w.sight.acquired = w.m->instructions;
  for (const auto& other : c.ctas) {
    if (!w.cta->grid_seen.empty()) w.cta->grid_seen[other->linear] = w.m->instructions;
    for (const auto& it : other->warps) {  // even where all arrived relaxed, all have started
      u32& clock = w.actor.seen[it->actor.id];
      clock = std::max(clock, kStarted);
    }
  }
  acquire(w, c.done_seen, c.done_proxied);
}

void launch_dependents(Warp& w, const Inst&) { w.m->note_trigger(*w.cta, w.has_waited()); }
void wait_dependency(Warp& w, const Inst&) {
  if (!w.m->dependency_done(*w.cta->cluster->launch)) return w.park(Wait::grid);
  if (!w.dependency_waited) w.cta->cluster->dependency_waits.push_back(w.actor.epoch());
  w.dependency_waited = true;
  w.sight.acquired = w.m->instructions;
}

void set_registers(Warp& w, const Inst& in) {  // in.a: inc, in.imm: registers
  if (!w.gather(~w.dead, in.ptx->text().c_str())) return;
  const PtxFunction& f = *w.cta->cluster->launch->program->ptx;
  if (!f.max_threads[0] && !f.required_threads[0]) return;  // ptxas ignores it too
  auto n = static_cast<u32>(in.imm);
  if (in.a ? n < w.registers : n > w.registers)
    fault("setmaxnreg-pool", std::string("setmaxnreg.") + (in.a ? "inc" : "dec") + " to " +
                                 std::to_string(n) + " while the warp holds " +
                                 std::to_string(w.registers) + " per thread");
  u32 difference = (in.a ? n - w.registers : w.registers - n) * 32;
  if (in.a && difference > w.cta->free_registers) return w.park(Wait::registers);
  w.cta->free_registers += in.a ? 0 - difference : difference;
  w.registers = n;
  ++w.m->progress;
}

bool decode_cta_barrier(Decoder& d) {
  Inst& out = *d.out;
  d.take("cta"), d.take("aligned");
  int how = d.take_one("sync arrive red");
  if (how < 0) d.unsupported();
  size_t at = 0;
  out.a = static_cast<u32>(how);
  if (how == 2) {
    int op = d.take_one("popc and or");
    d.take("u32"), d.take("pred");
    out.a = static_cast<u32>(2 + op);
    d.add_target(at++, op == 0 ? 32 : 1);
  }
  d.finish();
  d.add_source(at++, 32);
  size_t rest = d.operands() - at;
  if (rest > (how == 2 ? 1u : 0u)) d.add_source(at++, 32), out.c = 1;
  if (how == 1 && !out.c) throw PtxError(d.in->line, "bar.arrive needs a thread count");
  if (how == 2) {
    PtxOperand p = d.operand(at);
    out.b = p.negated;
    p.negated = false;
    out.s[out.sources++] = d.source(p, 1);
  }
  out.targets = 0;  // written when the barrier completes
  out.run = barrier;
  return true;
}

}  // namespace

void retry_barriers(Cta& cta) {
  for (auto& b : cta.barriers)
    if (!b.waiting.empty() && !b.expected && b.arrived >= cta.running * 32) complete(b);
  Cluster& c = *cta.cluster;
  if (c.barrier_arrived && c.barrier_arrived >= c.running) complete_cluster(c);
}

bool decode_barrier(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "bar" || (op == "barrier" && !d.in->has("cluster"))) return decode_cta_barrier(d);
  if (op == "barrier") {
    d.take("cluster"), d.take("aligned");
    bool arrive = d.take("arrive");
    if (!arrive && !d.take("wait")) d.unsupported();
    out.a = d.take("relaxed");
    d.take("release"), d.take("acquire");
    d.finish();
    out.run = arrive ? cluster_arrive : cluster_wait;
    return true;
  }
  if (op == "griddepcontrol") {
    bool launch = d.take("launch_dependents");
    if (!launch && !d.take("wait")) d.unsupported();
    d.finish();
    (launch ? d.program->launches_dependents : d.program->waits_for_dependency) = true;
    out.run = launch ? launch_dependents : wait_dependency;
    return true;
  }
  if (op == "setmaxnreg") {
    int how = d.take_one("inc dec");
    d.take("sync"), d.take("aligned"), d.take("u32");
    d.finish();
    out.a = how == 0;
    out.imm = static_cast<int64_t>(d.literal(0));
    if (how < 0 || out.imm < 24 || out.imm > 256 || out.imm % 8)
      throw PtxError(d.in->line, "setmaxnreg takes a multiple of 8 from 24 to 256");
    out.run = set_registers;
    return true;
  }
  return false;
}

}  // namespace l4k::emu
