// Barriers of CTAs and clusters, dependent launches, the register pool.
#include <algorithm>
#include <bit>

#include "machine/core/barriers.h"
#include "machine/isa/families.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;

struct Barrier {
  bool arrives_only, has_count;
  BarrierReduction reduction;
  bool negated;  // the predicate that is reduced
};
// The barrier that the operands name, with the count of threads that they expect.
NamedBarrier& named_barrier(Warp& w, const Inst& in, u32 lanes) {
  bool has_count = in.modifiers.as<Barrier>().has_count;
  u32 id = w.reg<u32>(in.s[0])[std::countr_zero(lanes)];
  u32 count = has_count ? w.reg<u32>(in.s[1])[std::countr_zero(lanes)] : 0;
  if (id > 15)
    fault("barrier-mismatch", "barrier " + std::to_string(id) + " does not exist: 0 to 15 do");
  Cta& cta = *w.cta;
  if (has_count && (count == 0 || count % 32 || count > cta.warps.size() * 32))
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
  return b;
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
  const auto& m = in.modifiers.as<Barrier>();
  NamedBarrier& b = named_barrier(w, in, all);
  ++w.counters().waits;
  if (m.reduction != BarrierReduction::none) {
    u32 p = *w.reg<u32>(in.s[in.sources - 1]);
    if (m.negated) p = ~p;
    b.red_count += static_cast<u32>(std::popcount(p & all));
    b.red_total += static_cast<u32>(std::popcount(all));
  }
  join(b.seen, w.actor.seen);
  join(b.proxied, w.actor.proxied);
  b.visibility.join(w.visibility);
  w.m->publish_warp(w);
  w.release();
  ++w.m->progress;
  b.arrived += 32;
  bool last = b.arrived >= (b.expected ? b.expected : w.cta->running * 32);
  if (last) join_ended(b, *w.cta);
  if (m.arrives_only) {
    if (last) complete_barrier(b);
    return;
  }
  BarrierWaiter waiter{&w, m.reduction, in.d[0]};
  if (last) {
    w.actor.acquire(b.seen, b.proxied);
    w.visibility = b.visibility;
    write_reduction(w, waiter, b);
    complete_barrier(b);
    return;
  }
  b.waiting.push_back(waiter);
  w.wait_barrier = static_cast<u32>(&b - w.cta->barriers);
  ++w.pc;
  w.park(Wait::barrier);
}

struct ClusterBarrier {
  bool relaxed;
};
void cluster_arrive(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, "barrier.cluster.arrive")) return;
  Cluster& c = *w.cta->cluster;
  if (w.cluster_arrived) fault("cluster-barrier", "barrier.cluster.arrive twice without a wait");
  w.cluster_arrived = true;
  w.cluster_phase = c.barrier_phase;
  if (!in.modifiers.as<ClusterBarrier>().relaxed) {
    join(c.seen, w.actor.seen);
    join(c.proxied, w.actor.proxied);
    w.m->publish(*w.cta, &w);
    w.release();
  }
  ++w.m->progress;
  if (++c.barrier_arrived >= c.running) complete_cluster_barrier(c);
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
  w.visibility.acquired = w.m->instructions;
  for (const auto& other : c.ctas) {
    if (!w.cta->grid_seen.empty()) w.cta->grid_seen[other->linear] = w.m->instructions;
    for (const auto& it : other->warps) {  // even where all arrived relaxed, all have started
      u32& clock = w.actor.seen[it->actor.id];
      clock = std::max(clock, kStarted);
    }
  }
  w.actor.acquire(c.done_seen, c.done_proxied);
}

void launch_dependents(Warp& w, const Inst&) { w.m->note_trigger(*w.cta, w.has_waited(), true); }
void wait_dependency(Warp& w, const Inst&) {
  if (!w.m->dependency_done(*w.cta->cluster->launch)) return w.park(Wait::grid);
  if (!w.dependency_waited) w.cta->cluster->dependency_waits.push_back(w.actor.epoch());
  w.dependency_waited = true;
  w.visibility.acquired = w.m->instructions;
}

struct SetRegisters {
  bool increase;
  uint16_t registers;
};
void set_registers(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, in.ptx->text().c_str())) return;
  const PtxFunction& f = *w.cta->cluster->launch->program->ptx;
  if (!f.max_threads[0] && !f.required_threads[0]) return;  // ptxas ignores it too
  const auto& m = in.modifiers.as<SetRegisters>();
  u32 n = m.registers;
  if (m.increase ? n < w.registers : n > w.registers)
    fault("setmaxnreg-pool", std::string("setmaxnreg.") + (m.increase ? "inc" : "dec") + " to " +
                                 std::to_string(n) + " while the warp holds " +
                                 std::to_string(w.registers) + " per thread");
  u32 difference = (m.increase ? n - w.registers : w.registers - n) * 32;
  if (m.increase && difference > w.cta->free_registers) return w.park(Wait::registers);
  w.cta->free_registers += m.increase ? 0 - difference : difference;
  w.registers = n;
  ++w.m->progress;
}

bool decode_cta_barrier(Decoder& d) {
  Inst& out = *d.out;
  d.take("cta"), d.take("aligned");
  int how = d.take_one("sync arrive red");
  if (how < 0) d.unsupported();
  bool reduces = how == 2;
  size_t at = 0;
  Barrier m{};
  m.arrives_only = how == 1;
  if (reduces) {
    int op = d.take_one("popc and or");
    if (op < 0) d.unsupported();
    d.take("u32"), d.take("pred");
    m.reduction = static_cast<BarrierReduction>(1 + op);
    d.add_target(at++, m.reduction == BarrierReduction::popc ? 32 : 1);
  }
  d.finish();
  d.add_source(at++, 32);
  m.has_count = d.operands() - at > (reduces ? 1u : 0u);
  if (m.has_count) d.add_source(at++, 32);
  if (m.arrives_only && !m.has_count) throw PtxError(d.in->line, "bar.arrive needs a thread count");
  if (reduces) m.negated = d.add_predicate(at);
  out.modifiers.store(m);
  out.targets = 0;  // written when the barrier completes
  out.run = barrier;
  return true;
}

}  // namespace

bool decode_barrier(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "bar" || (op == "barrier" && !d.in->has("cluster"))) return decode_cta_barrier(d);
  if (op == "barrier") {
    d.take("cluster"), d.take("aligned");
    bool arrive = d.take("arrive");
    if (!arrive && !d.take("wait")) d.unsupported();
    out.modifiers.store(ClusterBarrier{d.take("relaxed")});
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
    uint64_t n = d.literal(0);
    if (how < 0 || n < 24 || n > 256 || n % 8)
      throw PtxError(d.in->line, "setmaxnreg takes a multiple of 8 from 24 to 256");
    out.modifiers.store(SetRegisters{how == 0, static_cast<uint16_t>(n)});
    if (how == 0)
      d.program->largest_setmaxnreg =
          std::max(d.program->largest_setmaxnreg, static_cast<uint32_t>(n));
    out.run = set_registers;
    return true;
  }
  return false;
}

}  // namespace l4k::emu
