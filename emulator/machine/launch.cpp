// Launches: placing clusters on SMs, starting and ending them, publishing what they stored.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "machine/machine.h"

namespace l4k::emu {
namespace {
constexpr uint32_t kSmThreads = 2048, kSmShared = 228 * 1024, kSmCtas = 32, kSmRegisters = 65536;
}

Machine& Machine::get() {
  // Never destroyed: fat binaries are unregistered and programs print reports during exit.
  static Machine* machine = [] {
    auto* m = new Machine;
    m->configure_from_environment();
    return m;
  }();
  return *machine;
}

void Machine::configure(const Settings& s) {
  synchronize();
  settings = s;
  if (!settings.sms) settings.sms = 1;
  sms_.assign(settings.sms, Sm{});
  random.seed(settings.seed);
}

void Machine::reset() {
  launches_.clear();
  bulk_.clear();
  report = Report{};
  sectors.clear();
  sms_.assign(settings.sms, Sm{});
  random.seed(settings.seed);
}

uint32_t registers_per_thread(const Program& p, uint32_t threads) {
  const PtxFunction& f = *p.ptx;
  uint32_t bound = f.max_threads[0] ? f.max_threads[0] * f.max_threads[1] * f.max_threads[2]
                   : f.required_threads[0]
                       ? f.required_threads[0] * f.required_threads[1] * f.required_threads[2]
                       : 0;
  if (f.max_registers) return f.max_registers;
  if (!bound) return std::max(16u, std::min(64u, kSmRegisters / std::max(threads, 32u) / 8 * 8));
  bound = (bound + 127) / 128 * 128;  // registers are handed out to four warps at a time
  return std::min(255u, kSmRegisters / (bound * std::max(f.min_ctas, 1u)) / 8 * 8);
}

uint32_t occupancy(const Program& p, uint32_t threads, uint32_t shared) {
  if (!threads) return 0;
  threads = (threads + 31) / 32 * 32;
  uint32_t n = std::min(kSmCtas, kSmThreads / threads);
  n = std::min(n, kSmShared / (shared + 1024));
  uint32_t registers = (registers_per_thread(p, threads) + 7) / 8 * 8;
  // Without launch bounds the real number is ptxas's; registers then do not limit.
  if (p.ptx->max_threads[0] || p.ptx->required_threads[0] || p.ptx->max_registers)
    n = std::min(n, std::max(1u, kSmRegisters / (registers * threads)));
  return n;
}

bool Machine::fits(const Launch& l, uint32_t sm) const {
  const Sm& s = sms_[sm];
  uint32_t threads = l.warps_per_cta() * 32;
  return s.threads + threads <= kSmThreads && s.shared + l.shared_end <= kSmShared &&
         s.ctas < kSmCtas && s.registers + l.entry_registers * threads <= kSmRegisters;
}

bool Machine::launch(std::unique_ptr<Launch> l) {
  if (failed()) return false;
  if (sms_.size() != settings.sms) sms_.assign(settings.sms, Sm{});
  if (!l->programmatic || settings.mode == Mode::early) {
    run_until_done(0);
    if (failed()) return false;
  }
  const Program& p = *l->program;
  l->id = next_launch_++;
  if (!l->programmatic) sectors.clear();
  uint32_t threads = l->block[0] * l->block[1] * l->block[2];
  l->dynamic_base = (p.static_shared_end + p.dynamic_align - 1) / p.dynamic_align * p.dynamic_align;
  l->shared_end = l->dynamic_base + l->dynamic_shared;
  l->entry_registers = registers_per_thread(p, threads);
  if (!p.ptx->max_threads[0] && !p.ptx->required_threads[0] && !p.ptx->max_registers)
    l->entry_registers = std::min(l->entry_registers, 32u);
  l->clusters = uint64_t{l->grid[0] / l->cluster[0]} * (l->grid[1] / l->cluster[1]) *
                (l->grid[2] / l->cluster[2]);
  l->tracks_flags = uint64_t{l->grid[0]} * l->grid[1] * l->grid[2] <= 256;
  l->released.assign(uint64_t{l->grid[0]} * l->grid[1] * l->grid[2], 0);
  l->proxied = l->released;
  memory.add_range(l->params.data(), l->params.size(), true);
  auto& counters = kernel_counters[p.ptx->name];
  counters.kernel = p.ptx->name;
  ++counters.launches;
  counted_programs[p.ptx->name] = &p;
  bool overlaps = p.launches_dependents && late();
  launches_.push_back(std::move(l));
  if (!overlaps) run_until_done(0);
  return !failed();
}

bool Machine::synchronize() {
  run_until_done(0);
  sectors.clear();
  return !failed();
}

bool Machine::place_clusters() {
  bool placed = false;
  for (size_t i = 0; i < launches_.size(); ++i) {
    Launch& l = *launches_[i];
    if (i > 0) {
      const Launch& before = *launches_[i - 1];
      uint64_t ctas = uint64_t{before.grid[0]} * before.grid[1] * before.grid[2];
      if (!l.programmatic || before.triggered < ctas) break;
    }
    if (!l.next_cluster) {
      const Launch* before = i ? launches_[i - 1].get() : nullptr;
      l.complete = !l.programmatic ? l.id : before ? before->next_complete() : last_complete_;
    }
    while (l.next_cluster < l.clusters && place_cluster(l)) placed = true;
    if (l.next_cluster < l.clusters) break;
  }
  return placed;
}

bool Machine::place_cluster(Launch& l) {
  uint32_t size = l.cluster[0] * l.cluster[1] * l.cluster[2], threads = l.warps_per_cta() * 32;
  std::vector<uint32_t> chosen;
  uint32_t start = static_cast<uint32_t>(random() % sms_.size());
  auto take = [&](uint32_t sm, int sign) {
    sms_[sm].threads += static_cast<uint32_t>(sign) * threads;
    sms_[sm].shared += static_cast<uint32_t>(sign) * l.shared_end;
    sms_[sm].ctas += static_cast<uint32_t>(sign);
    sms_[sm].registers += static_cast<uint32_t>(sign) * l.entry_registers * threads;
  };
  for (uint32_t r = 0; r < size; ++r) {
    bool found = false;
    for (uint32_t k = 0; k < sms_.size() && !found; ++k) {
      uint32_t sm = (start + r + k) % static_cast<uint32_t>(sms_.size());
      if (!fits(l, sm)) continue;
      take(sm, 1);
      chosen.push_back(sm);
      found = true;
    }
    if (!found) {
      for (uint32_t sm : chosen) take(sm, -1);
      // A machine with fewer SMs than the cluster needs still runs one cluster at a time.
      bool idle = true;
      for (const auto& s : sms_) idle &= s.ctas == 0;
      if (!idle) return false;
      chosen.clear();
      for (uint32_t i = 0; i < size; ++i) {
        chosen.push_back(i % static_cast<uint32_t>(sms_.size()));
        take(chosen.back(), 1);
      }
      break;
    }
  }
  auto cluster = std::make_unique<Cluster>();
  uint64_t index = l.next_cluster++;
  uint32_t per[3];
  for (int d = 0; d < 3; ++d) per[d] = l.grid[d] / l.cluster[d];
  cluster->launch = &l;
  cluster->id[0] = static_cast<uint32_t>(index % per[0]);
  cluster->id[1] = static_cast<uint32_t>(index / per[0] % per[1]);
  cluster->id[2] = static_cast<uint32_t>(index / per[0] / per[1]);
  uint32_t warps = l.warps_per_cta(), block_threads = l.block[0] * l.block[1] * l.block[2];
  uint32_t per_cta = warps + 1 + (warps + 3) / 4;  // warps, copy engine, tensor cores
  cluster->actors = size * per_cta;
  cluster->seen.assign(cluster->actors, 0);
  cluster->proxied = cluster->done_seen = cluster->done_proxied = cluster->seen;
  for (uint32_t r = 0; r < size; ++r) {
    auto cta = std::make_unique<Cta>();
    cta->cluster = cluster.get();
    cta->rank = r;
    uint32_t in_cluster[3] = {r % l.cluster[0], r / l.cluster[0] % l.cluster[1],
                              r / l.cluster[0] / l.cluster[1]};
    for (int d = 0; d < 3; ++d) cta->id[d] = cluster->id[d] * l.cluster[d] + in_cluster[d];
    cta->linear = cta->id[0] + l.grid[0] * (cta->id[1] + l.grid[1] * cta->id[2]);
    cta->sm = static_cast<int>(chosen[r]);
    cta->shared = std::make_unique<SharedMemory>(l.shared_end, cluster->actors, per_cta, warps);
    cta->agent = r * per_cta + warps;
    cta->tensor_clock.assign((warps + 3) / 4, 0);
    cta->running = warps;
    if (l.tracks_flags) cta->grid_seen.assign(l.released.size(), 0);
    for (auto& b : cta->barriers) {
      b.seen.assign(cluster->actors, 0);
      b.proxied.assign(cluster->actors, 0);
    }
    for (uint32_t i = 0; i < warps; ++i) {
      auto w = std::make_unique<Warp>();
      w->m = this;
      w->cta = cta.get();
      w->index = i;
      w->registers = l.entry_registers;
      w->bias[static_cast<int>(Bias::dynamic_shared)] = l.dynamic_base;
      w->actor.id = r * per_cta + i;
      w->actor.seen.assign(cluster->actors, 0);
      w->actor.proxied.assign(cluster->actors, 0);
      w->actor.seen[w->actor.id] = kStarted + 1;
      uint32_t lanes = std::min(32u, block_threads - i * 32);
      uint32_t live = lanes == 32 ? kAllLanes : (1u << lanes) - 1;
      w->mask = w->live = live;
      w->dead = ~live;
      w->push_frame(l.program, live);
      w->bias[static_cast<int>(Bias::frame_params)] = l.param_base;
      auto set = [&](uint32_t special, auto fn) {
        Src s{special, l.program->offset[special]};
        auto* v = w->reg<uint32_t>(s);
        for (uint32_t lane = 0; lane < 32; ++lane) v[lane] = fn(lane);
      };
      auto all = [&](uint32_t special, uint32_t v) { set(special, [v](uint32_t) { return v; }); };
      uint32_t bx = l.block[0], by = l.block[1];
      set(kTidX, [&](uint32_t n) { return (i * 32 + n) % bx; });
      set(kTidY, [&](uint32_t n) { return (i * 32 + n) / bx % by; });
      set(kTidZ, [&](uint32_t n) { return (i * 32 + n) / bx / by; });
      for (uint32_t d = 0; d < 3; ++d) {
        all(kNtidX + d, l.block[d]);
        all(kCtaidX + d, cta->id[d]);
        all(kNctaidX + d, l.grid[d]);
        all(kClusteridX + d, cluster->id[d]);
        all(kNclusteridX + d, per[d]);
        all(kClusterCtaidX + d, in_cluster[d]);
        all(kClusterNctaidX + d, l.cluster[d]);
      }
      set(kLaneid, [](uint32_t n) { return n; });
      all(kWarpid, i), all(kNwarpid, warps), all(kSmid, chosen[r]), all(kNsmid, settings.sms);
      all(kGridid, l.id), all(kClusterCtarank, r), all(kClusterNctarank, size);
      set(kLanemaskEq, [](uint32_t n) { return 1u << n; });
      set(kLanemaskLe, [](uint32_t n) { return 0xffffffffu >> (31 - n); });
      set(kLanemaskLt, [](uint32_t n) { return (1u << n) - 1; });
      set(kLanemaskGe, [](uint32_t n) { return 0xffffffffu << n; });
      set(kLanemaskGt, [](uint32_t n) { return n == 31 ? 0 : 0xffffffffu << (n + 1); });
      all(kDynamicSmemSize, l.dynamic_shared), all(kTotalSmemSize, l.shared_end - 1024);
      all(kIsExplicitCluster, size > 1);
      cta->warps.push_back(std::move(w));
    }
    cluster->running += warps;
    cluster->ctas.push_back(std::move(cta));
  }
  l.resident.push_back(std::move(cluster));
  return true;
}

void Machine::note_trigger(Cta& cta, bool waited) {
  if (cta.triggered) return;
  cta.triggered = true;
  if (cta.cluster->launch->programmatic) cta.cluster->launch->waits_first &= waited;
  ++cta.cluster->launch->triggered;
  ++progress;
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
