// Settings and launches: what is made of a launch before its clusters are placed.
#include <algorithm>
#include <cstdlib>
#include <thread>

#include "machine/core/machine.h"

namespace l4k::emu {

uint32_t default_threads() { return std::clamp(std::thread::hardware_concurrency(), 1u, 8u); }

Machine& Machine::get() {
  // Never destroyed: fat binaries are unregistered and programs print reports during exit.
  static Machine* machine = [] {
    auto* m = new Machine(*new GlobalMemory);
    m->configure_from_environment();
    std::atexit([] { get().summarize(); });
    return m;
  }();
  return *machine;
}

void Machine::configure(const Settings& s) {
  synchronize();
  settings = s;
  ++epoch;
  settings.sms = std::max(settings.sms, 1u);
  sms_.assign(settings.sms, Sm{});
  random.seed(settings.seed);
}

void Machine::reset() {
  drop_launches();
  bulk_.clear();
  report = Report{};
  went_on.clear();
  kept_.clear();
  sectors.clear();
  order.forget();
  sms_.assign(settings.sms, Sm{});
  random.seed(settings.seed);
}

bool Machine::launch(std::unique_ptr<Launch> l) {
  if (failed()) return false;
  if (sms_.size() != settings.sms) sms_.assign(settings.sms, Sm{});
  bool same_stream = !launches_.empty() && l->operation && launches_.back()->operation &&
                     l->operation->lane == launches_.back()->operation->lane;
  if (!l->programmatic || !same_stream || settings.mode == Mode::early) {
    run_until_done(0);
    if (failed()) return false;
  }
  const Program& p = *l->program;
  kept_.clear();  // an earlier launch's program may be gone
  l->id = next_launch_++;
  ++progress;
  if (!l->programmatic) sectors.clear();
  uint32_t threads = l->block[0] * l->block[1] * l->block[2];
  l->dynamic_base = (p.static_shared_end + p.dynamic_align - 1) / p.dynamic_align * p.dynamic_align;
  l->shared_end = l->dynamic_base + l->dynamic_shared;
  l->entry_registers = registers_per_thread(p, threads);
  if (!p.ptx->max_threads[0] && !p.ptx->required_threads[0] && !p.ptx->max_registers)
    l->entry_registers = std::min(l->entry_registers, 32u);
  l->clusters = uint64_t{l->grid[0] / l->cluster[0]} * (l->grid[1] / l->cluster[1]) *
                (l->grid[2] / l->cluster[2]);
  l->tracks_flags = l->ctas() <= 256;
  l->released.assign(l->ctas(), 0);
  l->proxied = l->released;
  memory.add_range(l->params.data(), l->params.size(), Owner::parameters);
  if (!l->grid_workspace.empty())
    memory.add_range(l->grid_workspace.data(), l->grid_workspace.size() * 4);
  auto& counters = kernel_counters[p.ptx->name];
  counters.kernel = p.ptx->name;
  ++counters.launches;
  counted_programs[p.ptx->name] = &p;
  bool overlaps = p.launches_dependents && late();
  bool alone = launches_.empty() && !l->programmatic && !overlaps && !order.following();
  uint32_t shards = alone && !p.communicates ? shards_of(*l) : 1;
  launches_.push_back(std::move(l));
  if (shards > 1) run_shards(*launches_.front(), shards);
  else if (!overlaps) run_until_done(0);
  return !failed();
}

bool Machine::synchronize() {
  run_until_done(0);
  sectors.clear();
  return !failed();
}

void Machine::note_trigger(Cta& cta, bool waited, bool early) {
  if (cta.triggered) return;
  cta.triggered = true;
  Launch& l = *cta.cluster->launch;
  if (l.programmatic) l.waits_first &= waited;
  l.triggers_early |= early;
  ++l.triggered;
  ++progress;
}

// A launch without an early trigger is followed only when all of its CTAs have ended, which says
// nothing of the launches before it unless it waited for them.
Precedence Launch::of_next() const {
  Precedence next = waits_first ? Precedence{id, id} : precedence;
  if (next.ended == id && !triggers_early) ++next.ended;
  return next;
}

bool Machine::dependency_done(const Launch& l) const {
  return !launches_.empty() && launches_.front().get() == &l;
}

Launch* Machine::find_launch(uint32_t id) {
  for (auto& l : launches_)
    if ((l->id & 0xffff) == id) return l.get();
  return nullptr;
}

}  // namespace l4k::emu
