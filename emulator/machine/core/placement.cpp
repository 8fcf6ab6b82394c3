// Placing clusters on SMs: whether one fits, and what its CTAs and warps start with.
#include <algorithm>

#include "machine/core/machine.h"

namespace l4k::emu {
namespace {

constexpr uint32_t kSmThreads = 2048, kSmShared = 228 * 1024, kSmCtas = 32, kSmRegisters = 65536;

uint32_t product(const uint32_t (&extent)[3]) { return extent[0] * extent[1] * extent[2]; }

void set_special_registers(Warp& w) {
  const Cta& cta = *w.cta;
  const Cluster& cluster = *cta.cluster;
  const Launch& l = *cluster.launch;
  auto set = [&](uint32_t special, auto value_of_lane) {
    auto* v = w.reg<uint32_t>({special, l.program->offset[special]});
    for (uint32_t lane = 0; lane < 32; ++lane) v[lane] = value_of_lane(lane);
  };
  auto all = [&](uint32_t special, uint32_t v) { set(special, [v](uint32_t) { return v; }); };
  uint32_t first = w.index * 32, x = l.block[0], y = l.block[1];
  set(kTidX, [&](uint32_t n) { return (first + n) % x; });
  set(kTidY, [&](uint32_t n) { return (first + n) / x % y; });
  set(kTidZ, [&](uint32_t n) { return (first + n) / x / y; });
  for (uint32_t d = 0; d < 3; ++d) {
    all(kNtidX + d, l.block[d]);
    all(kCtaidX + d, cta.id[d]);
    all(kNctaidX + d, l.grid[d]);
    all(kClusteridX + d, cluster.id[d]);
    all(kNclusteridX + d, l.grid[d] / l.cluster[d]);
    all(kClusterCtaidX + d, cta.id[d] % l.cluster[d]);
    all(kClusterNctaidX + d, l.cluster[d]);
  }
  set(kLaneid, [](uint32_t n) { return n; });
  all(kWarpid, w.index);
  all(kNwarpid, l.warps_per_cta());
  all(kSmid, w.m->first_sm() + static_cast<uint32_t>(cta.sm));
  all(kNsmid, w.m->settings.sms);
  all(kGridid, l.id);
  all(kClusterCtarank, cta.rank);
  all(kClusterNctarank, product(l.cluster));
  set(kLanemaskEq, [](uint32_t n) { return 1u << n; });
  set(kLanemaskLe, [](uint32_t n) { return 0xffffffffu >> (31 - n); });
  set(kLanemaskLt, [](uint32_t n) { return (1u << n) - 1; });
  set(kLanemaskGe, [](uint32_t n) { return 0xffffffffu << n; });
  set(kLanemaskGt, [](uint32_t n) { return n == 31 ? 0 : 0xffffffffu << (n + 1); });
  all(kDynamicSmemSize, l.dynamic_shared);
  all(kTotalSmemSize, l.shared_end - 1024);
  all(kIsExplicitCluster, product(l.cluster) > 1);
  // The driver's workspace for cooperative_groups::this_grid(): null in other launches.
  auto workspace = reinterpret_cast<uint64_t>(l.grid_workspace.data());
  all(kEnvReg0, 0);
  all(kEnvReg1, static_cast<uint32_t>(workspace >> 32));
  all(kEnvReg2, static_cast<uint32_t>(workspace));
  all(kReservedSmemBegin, 0);
  all(kReservedSmemEnd, kReservedShared);
  all(kReservedSmemCap, kReservedShared);
  all(kReservedSmem0, 0);
  all(kReservedSmem1, kReservedShared - kGroupScratch);
}

std::unique_ptr<Warp> make_warp(Machine& m, Cta& cta, uint32_t index, uint32_t actor) {
  const Launch& l = *cta.cluster->launch;
  auto w = std::make_unique<Warp>();
  w->m = &m;
  w->cta = &cta;
  w->index = index;
  w->registers = l.entry_registers;
  w->bias[static_cast<int>(Bias::dynamic_shared)] = l.dynamic_base;
  w->actor.id = actor;
  w->actor.seen.assign(cta.cluster->actors, 0);
  w->actor.proxied.assign(cta.cluster->actors, 0);
  w->actor.seen[actor] = kStarted + 1;
  uint32_t lanes = std::min(32u, product(l.block) - index * 32);
  uint32_t live = lanes == 32 ? kAllLanes : (1u << lanes) - 1;
  w->mask = w->live = live;
  w->dead = ~live;
  w->push_frame(l.program, live);
  w->bias[static_cast<int>(Bias::frame_params)] = l.param_base;
  set_special_registers(*w);
  return w;
}

std::unique_ptr<Cta> make_cta(Machine& m, Cluster& cluster, uint32_t rank, uint32_t sm) {
  const Launch& l = *cluster.launch;
  uint32_t warps = l.warps_per_cta(), actors = l.actors_per_cta();
  auto cta = std::make_unique<Cta>();
  cta->cluster = &cluster;
  cta->rank = rank;
  uint32_t in_cluster[3];
  unravel(rank, l.cluster, in_cluster);
  for (int d = 0; d < 3; ++d) cta->id[d] = cluster.id[d] * l.cluster[d] + in_cluster[d];
  cta->linear = cta->id[0] + l.grid[0] * (cta->id[1] + l.grid[1] * cta->id[2]);
  cta->sm = static_cast<int>(sm);
  cta->shared = std::make_unique<SharedMemory>(l.shared_end, cluster.actors, actors, warps);
  if (l.program->uses_group_scratch) cta->shared->open_reserved(kGroupScratch);
  cta->copy_engine = rank * actors + warps;
  cta->tensor_clock.assign(l.warpgroups_per_cta(), 0);
  cta->running = warps;
  if (l.tracks_flags) cta->grid_seen.assign(l.released.size(), 0);
  for (auto& b : cta->barriers) {
    b.seen.assign(cluster.actors, 0);
    b.proxied.assign(cluster.actors, 0);
  }
  for (uint32_t i = 0; i < warps; ++i)
    cta->warps.push_back(make_warp(m, *cta, i, rank * actors + i));
  return cta;
}

}  // namespace

void unravel(uint64_t index, const uint32_t (&extent)[3], uint32_t (&at)[3]) {
  at[0] = static_cast<uint32_t>(index % extent[0]);
  at[1] = static_cast<uint32_t>(index / extent[0] % extent[1]);
  at[2] = static_cast<uint32_t>(index / extent[0] / extent[1]);
}

uint32_t registers_per_thread(const Program& p, uint32_t threads) {
  const PtxFunction& f = *p.ptx;
  uint32_t bound = f.max_threads[0] ? product(f.max_threads) : product(f.required_threads);
  if (f.max_registers) return f.max_registers;
  if (!bound) return std::max(16u, std::min(64u, kSmRegisters / std::max(threads, 32u) / 8 * 8));
  bound = (bound + 127) / 128 * 128;  // registers are handed out to four warps at a time
  uint32_t most = std::min(255u, kSmRegisters / (bound * std::max(f.min_ctas, 1u)) / 8 * 8);
  // ptxas compiles to no more than the largest setmaxnreg.inc, which may not lower the count.
  return p.largest_setmaxnreg ? std::min(most, p.largest_setmaxnreg) : most;
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

bool Machine::place_clusters() {
  bool placed = false;
  for (size_t i = 0; i < launches_.size(); ++i) {
    Launch& l = *launches_[i];
    if (i > 0) {
      const Launch& before = *launches_[i - 1];
      if (!l.programmatic || before.triggered < before.ctas()) break;
    }
    if (!l.next_cluster) {
      const Launch* before = i ? launches_[i - 1].get() : nullptr;
      l.precedence = !l.programmatic ? Precedence{l.id, l.id} : before ? before->of_next() : last_;
    }
    while (l.next_cluster < l.clusters && place_cluster(l)) placed = true;
    if (l.next_cluster < l.clusters) break;
  }
  return placed;
}

bool Machine::fits(const Launch& l, uint32_t sm) const {
  const Sm& s = sms_[sm];
  uint32_t threads = l.warps_per_cta() * 32;
  return s.threads + threads <= kSmThreads && s.shared + l.shared_end <= kSmShared &&
         s.ctas < kSmCtas && s.registers + l.entry_registers * threads <= kSmRegisters;
}

void Machine::occupy(const Launch& l, uint32_t sm) {
  Sm& s = sms_[sm];
  uint32_t threads = l.warps_per_cta() * 32;
  s.threads += threads;
  s.shared += l.shared_end;
  s.ctas += 1;
  s.registers += l.entry_registers * threads;
}

void Machine::vacate(const Launch& l, uint32_t sm) {
  Sm& s = sms_[sm];
  uint32_t threads = l.warps_per_cta() * 32;
  s.threads -= threads;
  s.shared -= l.shared_end;
  s.ctas -= 1;
  s.registers -= l.entry_registers * threads;
}

// An SM for each CTA of a cluster; empty when they do not all fit.
std::vector<uint32_t> Machine::choose_sms(const Launch& l) {
  uint32_t size = product(l.cluster), n = static_cast<uint32_t>(sms_.size());
  uint32_t start = static_cast<uint32_t>(random() % n);
  std::vector<uint32_t> chosen;
  for (uint32_t r = 0; r < size; ++r) {
    uint32_t k = 0;
    while (k < n && !fits(l, (start + r + k) % n)) ++k;
    if (k == n) break;
    chosen.push_back((start + r + k) % n);
    occupy(l, chosen.back());
  }
  if (chosen.size() == size) return chosen;
  for (uint32_t sm : chosen) vacate(l, sm);
  chosen.clear();
  // A machine with fewer SMs than the cluster needs still runs one cluster at a time.
  if (std::any_of(sms_.begin(), sms_.end(), [](const Sm& s) { return s.ctas != 0; })) return chosen;
  for (uint32_t r = 0; r < size; ++r) {
    chosen.push_back(r % n);
    occupy(l, chosen.back());
  }
  return chosen;
}

bool Machine::place_cluster(Launch& l) {
  std::vector<uint32_t> chosen = choose_sms(l);
  if (chosen.empty()) return false;
  auto cluster = std::make_unique<Cluster>();
  cluster->launch = &l;
  uint32_t clusters[3];
  for (int d = 0; d < 3; ++d) clusters[d] = l.grid[d] / l.cluster[d];
  unravel(l.first_cluster + l.next_cluster++ * l.cluster_stride, clusters, cluster->id);
  cluster->actors = product(l.cluster) * l.actors_per_cta();
  cluster->seen.assign(cluster->actors, 0);
  cluster->proxied = cluster->done_seen = cluster->done_proxied = cluster->seen;
  for (uint32_t r = 0; r < chosen.size(); ++r)
    cluster->ctas.push_back(make_cta(*this, *cluster, r, chosen[r]));
  cluster->running = product(l.cluster) * l.warps_per_cta();
  l.resident.push_back(std::move(cluster));
  return true;
}

}  // namespace l4k::emu
