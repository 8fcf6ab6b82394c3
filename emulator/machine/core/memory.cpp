#include "machine/core/memory.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace l4k::emu {

// Another CTA must not have ended, and must not end before the access.
static void visit(Warp& w, Cta& cta, uint64_t address, int lane, Use use) {
  bool arrives = use == Use::mbarrier;
  if (!cta.running && !arrives)
    fault_at("cluster-exited", "access to the shared memory of a CTA that has ended", lane,
             address);
  if (!cta.running)
    complain_at("arrival-at-exit", "arrives on an mbarrier of a CTA that has ended", lane, address);
  auto& visits = arrives ? cta.arrivals : cta.accesses;
  visits.resize(w.cta->cluster->actors);
  visits[w.actor.id] = {w.actor.seen[w.actor.id], &w.current()};
}

SharedPlace shared_place(Warp& w, uint64_t address, int lane, Use use) {
  if (address >> 32)
    fault_at("shared-out-of-bounds", "a shared address has 32 bits", lane, address);
  uint32_t rank = static_cast<uint32_t>(address >> 24), offset = address & 0xffffff;
  if (!rank) return {w.cta, offset};
  Cluster& c = *w.cta->cluster;
  if (rank > c.ctas.size())
    fault_at("shared-out-of-bounds",
             "shared::cluster address names CTA rank " + std::to_string(rank - 1) +
                 " of a cluster of " + std::to_string(c.ctas.size()),
             lane, address);
  Cta* cta = c.ctas[rank - 1].get();
  if (cta == w.cta) return {cta, offset};
  if (std::none_of(cta->warps.begin(), cta->warps.end(),
                   [&](const auto& other) { return w.actor.seen[other->actor.id] >= kStarted; }))
    complain_at("cluster-not-started",
                "access to another CTA's shared memory with no cluster barrier before: the CTA may "
                "not have started",
                lane, address);
  visit(w, *cta, address, lane, use);
  return {cta, offset};
}

Space generic_space(uint64_t* address) {
  if (*address >= kLocalWindow) {
    *address -= kLocalWindow;
    return Space::local;
  }
  if (*address >= kSharedWindow) {
    *address -= kSharedWindow;
    return Space::shared;
  }
  return Space::global;
}

void check_aligned(uint64_t address, uint32_t bytes, int lane) {
  if (address & (bytes - 1))
    fault_at("misaligned",
             "an access of " + std::to_string(bytes) +
                 " bytes needs an address that is a "
                 "multiple of it",
             lane, address);
}

void release_flag(Warp& w, uint64_t key) {
  Cluster& c = *w.cta->cluster;
  if (c.actors <= 2) return;
  auto& f = c.flags[key];
  if (f.first.empty()) {
    f.first.assign(c.actors, 0);
    f.second.assign(c.actors, 0);
  }
  join(f.first, w.actor.seen);
  join(f.second, w.actor.proxied);
}

void acquire_flag(Warp& w, uint64_t key) {
  auto& flags = w.cta->cluster->flags;
  auto it = flags.find(key);
  if (it == flags.end()) return;
  w.actor.acquire(it->second.first, it->second.second);
}

static void join_times(std::vector<uint64_t>& into, const std::vector<uint64_t>& from) {
  for (size_t i = 0; i < into.size() && i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

void release_to_grid(Warp& w, uint64_t address, bool release) {
  Cta& cta = *w.cta;
  Launch& l = *cta.cluster->launch;
  if (release) cta.fence_time = w.m->instructions;
  if (!l.tracks_flags) return;
  if (l.grid_flags.size() > 4096) {
    l.tracks_flags = false;
    return;
  }
  auto& flag = l.grid_flags[address];
  if (flag.empty()) flag.assign(l.released.size(), 0);
  join_times(flag, cta.grid_seen);
  flag[cta.linear] = std::max(flag[cta.linear], cta.fence_time);
}

void acquire_from_grid(Warp& w, uint64_t address, bool acquire) {
  w.visibility.observed = w.m->instructions;
  if (acquire) w.visibility.acquired = w.m->instructions;
  auto& flags = w.cta->cluster->launch->grid_flags;
  if (auto it = flags.find(address); it != flags.end()) join_times(w.cta->grid_seen, it->second);
}

void acquire_global(Warp& w, uint64_t address, Order order) {
  acquire_flag(w, address);
  acquire_from_grid(w, address, order == Order::acquire);
}

void release_global(Warp& w, uint64_t address) {
  release_flag(w, address);
  release_to_grid(w, address, false);
  ++w.m->progress;
}

bool holds_mbarrier(const Cta& cta, uint64_t begin, uint64_t end) {
  auto it = cta.mbarriers.lower_bound(static_cast<uint32_t>(begin < 7 ? 0 : begin - 7));
  return it != cta.mbarriers.end() && it->first < end;
}

void check_no_mbarrier(const Cta& cta, uint32_t offset, uint32_t bytes, int lane) {
  if (holds_mbarrier(cta, offset, offset + bytes))
    complain_at("mbarrier-overwritten", "writes over a live mbarrier; mbarrier.inval comes first",
                lane, offset);
}

static Writer strong_writer(Order order) {
  return order == Order::volatile_ ? Writer::volatile_ : Writer::atomic;
}

uint32_t read_memory(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes, void* out,
                     Order order, Origin* from) {
  if (space == Space::none) space = generic_space(&address);
  check_aligned(address, bytes, lane);
  uint64_t lanes[32];
  bool buffered;
  uint32_t undefined = 0;
  switch (space) {
    case Space::shared: {
      SharedPlace at = shared_place(w, address, lane);
      SharedMemory& shared = *at.cta->shared;
      if (is_coherent(order)) {
        acquire_flag(w, uint64_t{at.cta->rank} << 32 | at.offset);
        undefined = shared.strong_read(at.offset, bytes, w.actor, lane, strong_writer(order));
      } else {
        undefined = shared.read(at.offset, bytes, w.actor, lane);
      }
      std::memcpy(out, shared.data() + at.offset, bytes);
      if (undefined) *from = w.read_undefined(shared, at.offset, bytes, lane);
      return undefined;
    }
    case Space::local:
      std::memcpy(out, w.local_memory(lane, address, bytes), bytes);
      return w.undefined_local.find(lane_byte(lane, address), bytes, from);
    case Space::global:
      lanes[lane] = address;
      global_pointer(w, lane, address, bytes, false);
      if (is_coherent(order)) acquire_global(w, address, order);
      buffered = touch_global(w, lanes, 1u << lane, bytes, load_access(order));
      read_touched(w, address, out, bytes, buffered);
      return 0;
    default:
      std::memcpy(out, global_pointer(w, lane, address, bytes, false), bytes);
      return 0;
  }
}

void write_memory(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes,
                  const void* data, Order order) {
  if (space == Space::none) space = generic_space(&address);
  check_aligned(address, bytes, lane);
  uint64_t lanes[32];
  switch (space) {
    case Space::shared: {
      SharedPlace at = shared_place(w, address, lane);
      check_no_mbarrier(*at.cta, at.offset, bytes, lane);
      if (is_coherent(order)) {
        at.cta->shared->strong_write(at.offset, bytes, w.actor, lane, strong_writer(order));
        release_flag(w, uint64_t{at.cta->rank} << 32 | at.offset);
      } else {
        at.cta->shared->write(at.offset, bytes, w.actor, lane, Writer::generic, data);
      }
      std::memcpy(at.cta->shared->data() + at.offset, data, bytes);
      if (is_coherent(order)) ++w.m->progress;
      return;
    }
    case Space::local:
      std::memcpy(w.local_memory(lane, address, bytes), data, bytes);
      w.undefined_local.clear(lane_byte(lane, address), bytes);
      return;
    case Space::global:
      lanes[lane] = address;
      global_pointer(w, lane, address, bytes, true);
      touch_global(w, lanes, 1u << lane, bytes, store_access(w, order));
      write_touched(w, address, data, bytes, store_access(w, order));
      if (is_coherent(order)) release_global(w, address);
      return;
    default:
      fault_at("global-read-only", "writes a kernel parameter or constant", lane, address);
  }
}

void write_undefined(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes,
                     const Reg& value) {
  if (space == Space::none) space = generic_space(&address);
  Origin from = w.origin(value);
  if (space == Space::shared) {
    SharedPlace at = shared_place(w, address, lane);
    if (!from) from = {w.program, &w.current(), Origin::kRegister};
    at.cta->shared->forget(at.offset, bytes, from);
  } else if (space != Space::local) {
    w.use(value, 1u << lane);
  } else if (from) {  // padding of structures is copied, a register that nobody wrote
    w.undefined_local.set(lane_byte(lane, address), bytes, from);
  }
}

// 128 bytes per wavefront: 8-byte accesses go in two halves, 16-byte ones in four quarters. Lanes
// that read the same word share it.
void count_shared(Warp& w, const uint64_t* address, uint32_t lanes, uint32_t bytes) {
  uint64_t low = ~uint64_t{0}, high = 0, run = 0;
  auto first_lane = static_cast<uint64_t>(std::countr_zero(lanes));
  for (uint32_t l = lanes; l; l &= l - 1) {
    auto lane = static_cast<uint64_t>(std::countr_zero(l));
    low = std::min(low, address[lane]), high = std::max(high, address[lane]);
    run |= address[lane] - (address[first_lane] + (lane - first_lane) * bytes);
  }
  if (!run || low == high || (bytes <= 4 && high / 4 - low / 4 < 32)) return;  // no two in a bank
  uint32_t step = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8, words = std::max(1u, bytes / 4);
  for (uint32_t first = 0; first < 32; first += step) {
    uint32_t bank[32][32], depth[32] = {}, deepest = 0;
    for (uint32_t lane = first; lane < first + step; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (uint32_t k = 0; k < words; ++k) {
        auto word = static_cast<uint32_t>(address[lane] >> 2) + k;
        uint32_t b = word & 31, i = 0;
        while (i < depth[b] && bank[b][i] != word) ++i;
        if (i == depth[b]) bank[b][depth[b]++] = word;
        deepest = std::max(deepest, depth[b]);
      }
    }
    if (deepest > 1) w.counters().conflicts += deepest - 1;
  }
}

}  // namespace l4k::emu
