// When stores become visible, and the ends of warps, clusters and launches.
#include "machine/core/barriers.h"

namespace l4k::emu {
namespace {

// The buffered bytes reach memory.
void drain_buffer(Machine& m, StoreBuffer& buffer) {
  buffer.drain([&](uint64_t address, const uint8_t* data, uint32_t mask) {
    copy_sector(reinterpret_cast<uint8_t*>(address), data, mask);
    m.sectors.at(address).unpublished &= ~mask;
  });
}

// Every use of the CTA's shared memory by another must be ordered before its end.
void check_visits(const Cta& cta, const std::vector<Cta::Visit>& visits, KindName kind,
                  const std::string& what) {
  const Cluster& c = *cta.cluster;
  uint32_t per_cta = c.actors / static_cast<uint32_t>(c.ctas.size());
  for (uint32_t a = 0; a < visits.size(); ++a)
    if (visits[a].clock > cta.left[a])
      complain(kind, "the CTA ends with no barrier between that and " + what + " by warp " +
                         std::to_string(a % per_cta) + " of CTA rank " +
                         std::to_string(a / per_cta) + " at " +
                         location(*c.launch->program, *visits[a].where));
}

}  // namespace

void Machine::publish(Cta& cta, Warp* w) {
  cta.cluster->launch->released[cta.linear] = cta.fence_time = instructions;
  drain(cta, w);
}

void Machine::drain(Cta& cta, Warp* w) {
  if (w && !w->stores.empty()) w->stores.merge_into(&cta.stores);
  if (cta.stores.empty()) return;
  drain_buffer(*this, cta.stores);
  ++progress;
}

void Machine::publish_warp(Warp& w) {
  if (!w.stores.empty()) w.stores.merge_into(&w.cta->stores);
}

void Machine::warp_exited(Warp& w) {
  ++progress;
  Cta& cta = *w.cta;
  Launch& l = *cta.cluster->launch;
  publish_warp(w);
  w.check_warpgroup_exit();
  for (const auto& op : bulk_)
    if (op.warp == &w && op.group != ~0u && !op.released)
      complain("store-at-exit",
               "the thread ends while a bulk store still reads shared memory: "
               "cp.async.bulk.wait_group.read is missing",
               op.lane);
  cta.left.resize(w.actor.seen.size());
  join(cta.left, w.actor.seen);
  cta.cluster->running--;
  --cta.running;
  retry_barriers(cta);  // they count the warps that are left
  if (cta.running) return;
  for (const auto& other : cta.warps)
    if (other->registers != cta.warps[other->index / 4 * 4]->registers)
      complain("warpgroup-divergence", "setmaxnreg by some warps of warpgroup " +
                                           std::to_string(other->index / 4) + " only");
  bool waited = false;
  for (const auto& other : cta.warps) waited |= other->has_waited();
  if (l.programmatic && !waited)
    complain(
        "dependency-wait-missing",
        "a CTA of a dependent launch ends without griddepcontrol.wait: the launch after it may "
        "start before the one before it is complete");
  for (const auto& op : bulk_)
    if (op.warp->cta == &cta && op.group == ~0u)
      complain("copy-at-exit", "the CTA ends while a copy that it issued is in flight", op.lane);
  uint32_t waited_for = cta.left[cta.copy_engine];
  if (cta.sent_clock > waited_for)
    complain("cluster-exited",
             "the CTA ends, and none of its threads has waited for another CTA's copy into its "
             "shared memory");
  else if (cta.copy_clock > waited_for)
    complain("copy-at-exit",
             "the CTA ends, and none of its threads has waited for a bulk copy into its shared "
             "memory");
  check_visits(cta, cta.accesses, "cluster-exited", "an access to its shared memory");
  check_visits(cta, cta.arrivals, "arrival-at-exit", "an arrival on its mbarrier");
  report_unused(cta);
  note_trigger(cta, waited, false);
  if (!cta.stores.empty()) cta.stores.merge_into(&l.held);
}

void Machine::finish_cluster(Launch& l, size_t index) {
  Cluster& c = *l.resident[index];
  for (size_t i = bulk_.size(); i-- > 0;)
    if (bulk_[i].warp->cta->cluster == &c) {
      bulk_[i].released = true;
      land(i);
      if (failed()) return;
    }
  for (auto& cta : c.ctas) vacate(l, static_cast<uint32_t>(cta->sm));
  l.resident.erase(l.resident.begin() + static_cast<ptrdiff_t>(index));
  ++l.finished;
  ++progress;
}

void Machine::finish_first_launch() {
  Launch& l = *launches_.front();
  drain_buffer(*this, l.held);
  auto& k = kernel_counters[l.program->ptx->name];
  k.distinct_read_bytes += l.distinct_read * 32;
  k.distinct_written_bytes += l.distinct_written * 32;
  last_ = l.of_next();
  forget_ranges(l);
  launches_.erase(launches_.begin());
  ++progress;
}

void Machine::forget_ranges(const Launch& l) {
  memory.remove_range(l.params.data(), l.params.size());
  if (!l.grid_workspace.empty())
    memory.remove_range(l.grid_workspace.data(), l.grid_workspace.size() * 4);
}

void Machine::drop_launches() {
  for (const auto& l : launches_) forget_ranges(*l);
  launches_.clear();
}

}  // namespace l4k::emu
