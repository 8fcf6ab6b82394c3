// When stores become visible, and the ends of warps, clusters and launches.
#include <cstring>

#include "machine/core/barriers.h"

namespace l4k::emu {
namespace {

// The buffered bytes reach memory.
void drain_buffer(Machine& m, StoreBuffer& buffer) {
  buffer.drain([&](uint64_t address, const uint8_t* data, uint16_t mask) {
    auto* p = reinterpret_cast<uint8_t*>(address);
    for (uint32_t i = 0; i < 16; ++i)
      if (mask >> i & 1) p[i] = data[i];
    Sector& s = m.sectors.at(address);
    s.unpublished &= ~(uint32_t{mask} << (address & 31));
  });
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
      fault("shared-in-flight",
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
      fault("warpgroup-divergence",
            "setmaxnreg by some warps of warpgroup " + std::to_string(other->index / 4) + " only");
  bool waited = false;
  for (const auto& other : cta.warps) waited |= other->has_waited();
  if (l.programmatic && !waited)
    fault("dependency-wait-missing",
          "a CTA of a dependent launch ends without griddepcontrol.wait: the launch after it may "
          "start before the one before it is complete");
  for (const auto& op : bulk_)
    if (op.warp->cta == &cta && op.group == ~0u)
      fault("shared-in-flight", "the CTA ends while a copy that it issued is in flight", op.lane);
  if (cta.copy_clock > cta.left[cta.copy_engine])
    fault(
        "shared-in-flight",
        "the CTA ends, and none of its threads has waited for a bulk copy into its shared memory");
  for (uint32_t a = 0; a < cta.visits.size(); ++a) {
    const auto& [clock, where] = cta.visits[a];
    uint32_t per_cta = cta.cluster->actors / static_cast<uint32_t>(cta.cluster->ctas.size());
    if (clock > cta.left[a])
      fault("cluster-exited",
            "the CTA ends with no barrier between that and an access to its shared "
            "memory by warp " +
                std::to_string(a % per_cta) + " of CTA rank " + std::to_string(a / per_cta) +
                " at " + location(*l.program, *where));
  }
  note_trigger(cta, waited);
  if (!cta.stores.empty()) l.held.push_back(std::move(cta.stores));
  if (l.held.size() > 4096) {
    for (auto& b : l.held) drain_buffer(*this, b);
    l.held.clear();
  }
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
  for (auto& b : l.held) drain_buffer(*this, b);
  l.held.clear();
  auto& k = kernel_counters[l.program->ptx->name];
  k.distinct_read_bytes += l.distinct_read * 32;
  k.distinct_written_bytes += l.distinct_written * 32;
  last_complete_ = l.next_complete();
  memory.remove_range(l.params.data(), l.params.size());
  if (!l.grid_workspace.empty())
    memory.remove_range(l.grid_workspace.data(), l.grid_workspace.size() * 4);
  launches_.erase(launches_.begin());
  ++progress;
}

}  // namespace l4k::emu
