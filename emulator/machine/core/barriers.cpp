#include "machine/core/barriers.h"

namespace l4k::emu {

void write_reduction(Warp& w, const BarrierWaiter& waiter, const NamedBarrier& b) {
  if (waiter.reduction == BarrierReduction::none) return;
  if (waiter.reduction == BarrierReduction::popc) {
    w.broadcast(waiter.result, b.red_count);
  } else {
    bool v =
        waiter.reduction == BarrierReduction::all ? b.red_count == b.red_total : b.red_count != 0;
    w.set_predicate(waiter.result, v ? kAllLanes : 0);
  }
  w.written(waiter.result, w.active);
}

void join_ended(NamedBarrier& b, const Cta& cta) {
  if (!b.expected && !cta.left.empty()) join(b.seen, cta.left);
}

void complete_barrier(NamedBarrier& b) {
  for (const BarrierWaiter& waiter : b.waiting) {
    Warp& w = *waiter.warp;
    w.actor.acquire(b.seen, b.proxied);
    w.visibility.join(b.visibility);
    write_reduction(w, waiter, b);
    w.wake();
  }
  b.waiting.clear();
  b.arrived = b.red_count = b.red_total = 0;
  b.visibility = {};
  b.seen.assign(b.seen.size(), 0);
  b.proxied.assign(b.proxied.size(), 0);
}

void complete_cluster_barrier(Cluster& c) {
  ++c.barrier_phase;
  c.barrier_arrived = 0;
  c.done_seen = c.seen;
  c.done_proxied = c.proxied;
  c.seen.assign(c.actors, 0);
  c.proxied.assign(c.actors, 0);
  for (Warp* w : c.barrier_waiting) w->wake();
  c.barrier_waiting.clear();
}

void retry_barriers(Cta& cta) {
  for (auto& b : cta.barriers)
    if (!b.waiting.empty() && !b.expected && b.arrived >= cta.running * 32) {
      join_ended(b, cta);
      complete_barrier(b);
    }
  Cluster& c = *cta.cluster;
  if (c.barrier_arrived && c.barrier_arrived >= c.running) complete_cluster_barrier(c);
}

}  // namespace l4k::emu
