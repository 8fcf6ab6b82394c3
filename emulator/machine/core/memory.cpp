#include "machine/core/memory.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace l4k::emu {

SharedPlace shared_place(Warp& w, uint64_t address, int lane) {
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
  if (!cta->running)
    fault_at("cluster-exited", "access to the shared memory of a CTA that has ended", lane,
             address);
  if (cta == w.cta) return {cta, offset};
  if (std::none_of(cta->warps.begin(), cta->warps.end(),
                   [&](const auto& other) { return w.actor.seen[other->actor.id] >= kStarted; }))
    fault_at("cluster-not-started",
             "access to another CTA's shared memory with no cluster barrier before: the CTA may "
             "not have started",
             lane, address);
  cta->visits.resize(c.actors);
  cta->visits[w.actor.id] = {w.actor.seen[w.actor.id], &w.current()};
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

namespace {

uint32_t sector_mask(uint64_t sector, uint64_t address, uint64_t bytes) {
  uint64_t lo = std::max(address, sector) - sector,
           hi = std::min(address + bytes, sector + 32) - sector;
  return static_cast<uint32_t>(((uint64_t{1} << hi) - 1) & ~((uint64_t{1} << lo) - 1));
}

// Dependent launches: before its wait, a kernel may touch nothing that a launch touches which may
// still run, and before its end nothing that the next one has touched.
void check_overlap(Warp& w, Sector& s, uint32_t mask, bool reads, bool writes, uint64_t address,
                   int lane) {
  Machine& m = *w.m;
  Launch& l = *w.cta->cluster->launch;
  auto tag = static_cast<uint16_t>(l.id);
  auto overlaps = [&](uint16_t other) {
    if (!other || other == tag) return false;
    if (static_cast<uint16_t>(other - tag) < 0x8000) return true;
    return !w.has_waited() && static_cast<uint16_t>(other - l.complete) < 0x8000;
  };
  if ((s.written & mask) && overlaps(s.launch))
    fault_at("dependency-race",
             std::string(reads ? "reads" : "writes") +
                 " what an overlapping kernel wrote with no griddepcontrol.wait between",
             lane, address);
  if (!writes) return;
  if (((s.last_read & mask) && overlaps(s.reader_launch)) ||
      ((s.early_read & mask) && s.early_reader != tag && m.find_launch(s.early_reader)))
    fault_at("dependency-race",
             "writes what an overlapping kernel read with no griddepcontrol.wait between", lane,
             address);
}

// Warps of one CTA: an access conflicts with another warp's unless a barrier orders them, or a
// detour through the grid does.
void check_warps(Warp& w, const Sector& s, uint32_t mask, bool writes, uint64_t address, int lane) {
  Launch& l = *w.cta->cluster->launch;
  uint32_t me = w.cta->linear + 1;
  auto tag = static_cast<uint16_t>(l.id);
  auto unordered = [&](uint32_t epoch, uint64_t time) {
    return !ordered(epoch, w.actor.seen) &&
           (l.released[me - 1] < time || w.visibility.acquired < time);
  };
  auto race = [&](const char* what, uint32_t epoch, const char* did) {
    fault_at("global-race",
             what + std::to_string(epoch_actor(epoch) - w.cta->warps[0]->actor.id) +
                 " of this CTA " + did + ", with no barrier between",
             lane, address);
  };
  if (!writes && s.launch == tag && s.owner == me && (s.writer_bytes & mask) &&
      unordered(s.writer, s.write_time))
    race("reads what warp ", s.writer, "wrote");
  if (writes && s.reader_launch == tag && s.reader == me && (s.reading_bytes & mask) &&
      unordered(s.reading, s.read_time))
    race("writes what warp ", s.reading, "has read");
}

// CTAs of one launch: an access conflicts with another CTA's unless that one released something to
// the grid after its access and this warp acquired something later still.
void check_ctas(Warp& w, const Sector& s, uint32_t mask, bool writes, uint64_t address, int lane) {
  Launch& l = *w.cta->cluster->launch;
  auto tag = static_cast<uint16_t>(l.id);
  uint32_t me = w.cta->linear + 1;
  auto unordered = [&](uint32_t other, uint64_t time) {
    return l.released[other - 1] < time || w.visibility.acquired < time ||
           (l.tracks_flags && w.cta->grid_seen[other - 1] < time);
  };
  auto name = [](uint32_t cta) { return "CTA " + std::to_string(cta - 1) + " (linear index)"; };
  if (!writes && s.launch == tag && (s.last_written & mask) && s.owner != me &&
      unordered(s.owner, s.write_time))
    fault_at(
        "stale-global-read",
        "reads what " + name(s.owner) + " wrote, with no release there and acquire here between",
        lane, address);
  if (writes && s.reader_launch == tag && (s.last_read & mask) && s.reader && s.reader != me &&
      unordered(s.reader, s.read_time))
    fault_at("stale-global-read",
             "writes what " + name(s.reader) +
                 " has read, with no release there and acquire here "
                 "between: the read may come before or after",
             lane, address);
}

Touching touching(Access how) {
  if (how == Access::atomic || how == Access::coherent_read) return Touching::atomic;
  return how == Access::read ? Touching::read : Touching::write;
}

}  // namespace

void note_global(Warp& w, uint64_t address, uint64_t bytes, Access how, int lane) {
  Machine& m = *w.m;
  Launch& l = *w.cta->cluster->launch;
  uint32_t me = w.cta->linear + 1;
  auto tag = static_cast<uint16_t>(l.id);
  bool stores = how == Access::write || how == Access::bulk_write, reads = !stores;
  bool writes = stores || how == Access::atomic, chained = l.programmatic || m.followed(l);
  if (m.order.following() && l.operation)
    m.order.note(l.operation, address, bytes, touching(how), lane);
  for (uint64_t at = address & ~uint64_t{31}; at < address + bytes; at += 32) {
    Sector& s = m.sectors.at(at);
    uint32_t mask = sector_mask(at, address, bytes);
    if (chained) check_overlap(w, s, mask, reads, writes, address, lane);
    if (how == Access::read || stores) check_ctas(w, s, mask, writes, address, lane);
    if (how != Access::coherent_read) check_warps(w, s, mask, stores, address, lane);
    if (reads && s.counted_read != tag) s.counted_read = tag, ++l.distinct_read;
    if (how == Access::read) {
      if (chained && !w.has_waited()) {
        s.early_read = s.early_reader == tag ? s.early_read | mask : mask;
        s.early_reader = tag;
      }
      bool same = s.reader == me && s.reader_launch == tag && l.released[me - 1] <= s.read_time;
      s.last_read = same ? s.last_read | mask : mask;
      s.reading_bytes = same && s.reading == w.actor.epoch() ? s.reading_bytes | mask : mask;
      s.reading = w.actor.epoch();
      s.reader = me, s.reader_launch = tag, s.read_time = m.instructions;
    }
    if (!writes) continue;
    if ((s.nc_read & mask) && s.nc_reader == tag)
      fault_at("nc-read-of-written", "writes what this kernel has read through ld.global.nc", lane,
               address);
    if (!s.written || s.launch != tag) ++l.distinct_written;
    bool same = s.owner == me && s.launch == tag && l.released[me - 1] <= s.write_time;
    s.last_written = same ? s.last_written | mask : mask;
    s.writer_bytes = same && s.writer == w.actor.epoch() ? s.writer_bytes | mask : mask;
    s.writer = how == Access::atomic ? 0 : w.actor.epoch();
    s.written = s.launch == tag ? s.written | mask : mask;
    s.launch = tag, s.owner = me, s.write_time = m.instructions;
    s.bulk_written = how == Access::bulk_write;
  }
}

uint8_t* global_pointer(Warp& w, int lane, uint64_t address, uint64_t bytes, bool write) {
  const Range* r = w.m->memory.find(address, bytes);
  if (!r)
    fault_at("global-out-of-bounds",
             std::string(write ? "writes " : "reads ") + std::to_string(bytes) +
                 " bytes: " + w.m->memory.describe(address),
             lane, address);
  if (r->ended && w.cta->cluster->launch->id >= r->ended)
    fault_at("use-after-free",
             std::string(write ? "writes " : "reads ") + r->name + " of " +
                 std::to_string(r->end - r->begin) +
                 " bytes that was freed before this kernel was launched",
             lane, address);
  if (write && r->read_only())
    fault_at("global-read-only", "writes a kernel parameter or constant", lane, address);
  return reinterpret_cast<uint8_t*>(address);
}

// Several CTAs may own bytes of one sector, so the buffers decide.
void check_published(Warp& w, uint64_t address, uint64_t bytes, const char* what, int lane) {
  auto tag = static_cast<uint16_t>(w.cta->cluster->launch->id);
  for (uint64_t a = address; a < address + bytes; ++a) {
    const Sector& s = w.m->sectors.at(a);
    if (!(s.unpublished >> (a & 31) & 1) || s.launch != tag) continue;
    bool mine = w.cta->stores.holds(a);
    for (const auto& other : w.cta->warps) mine = mine || other->stores.holds(a);
    if (!mine)
      fault_at("stale-global-read",
               std::string(what) + " what another CTA (linear index " +
                   std::to_string(s.owner - 1) +
                   ") stored and has not published with a fence or release of gpu scope",
               lane, a);
  }
}

static void read_global(Warp& w, int lane, uint64_t address, uint32_t bytes, void* out,
                        Order order) {
  const uint8_t* p = global_pointer(w, lane, address, bytes, false);
  bool coherent = order == Order::coherent || order == Order::acquire;
  note_global(w, address, bytes, coherent ? Access::coherent_read : Access::read, lane);
  Sector& s = w.m->sectors.at(address);
  auto tag = static_cast<uint16_t>(w.cta->cluster->launch->id);
  uint32_t offset = address & 31;
  auto mask = static_cast<uint32_t>(((uint64_t{1} << std::min(bytes, 32 - offset)) - 1) << offset);
  if (order == Order::nc) {
    if (s.launch == tag && (s.written & mask))
      fault_at("nc-read-of-written", "ld.global.nc of memory that this kernel writes", lane,
               address);
    s.nc_read = s.nc_reader == tag ? s.nc_read | mask : mask;
    s.nc_reader = tag;
  }
  if (order == Order::weak && (s.unpublished & mask))
    check_published(w, address, bytes, "reads", lane);
  std::memcpy(out, p, bytes);
  if (!w.cta->stores.empty()) w.cta->stores.read(address, out, bytes);
  if (!w.stores.empty()) w.stores.read(address, out, bytes);
}

static void write_global(Warp& w, int lane, uint64_t address, uint32_t bytes, const void* data,
                         Order order) {
  uint8_t* p = global_pointer(w, lane, address, bytes, true);
  note_global(w, address, bytes, Access::write, lane);
  if (order == Order::weak && w.m->late()) {
    w.stores.write(address, data, bytes);
    Sector& s = w.m->sectors.at(address);
    s.unpublished |= static_cast<uint32_t>(((uint64_t{1} << bytes) - 1) << (address & 31));
    return;
  }
  if (w.m->late()) {
    w.stores.erase(address, bytes);
    w.cta->stores.erase(address, bytes);
  }
  std::memcpy(p, data, bytes);
}

void check_no_mbarrier(const Cta& cta, uint32_t offset, uint32_t bytes, int lane) {
  auto it = cta.mbarriers.lower_bound(offset < 7 ? 0 : offset - 7);
  if (it != cta.mbarriers.end() && it->first < offset + bytes)
    fault_at("mbarrier-overwritten", "writes over a live mbarrier; mbarrier.inval comes first",
             lane, it->first);
}

void read_memory(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes, void* out,
                 Order order) {
  if (space == Space::none) space = generic_space(&address);
  check_aligned(address, bytes, lane);
  switch (space) {
    case Space::shared: {
      SharedPlace at = shared_place(w, address, lane);
      if (order == Order::coherent || order == Order::acquire) {
        acquire_flag(w, uint64_t{at.cta->rank} << 32 | at.offset);
        at.cta->shared->atomic(at.offset, bytes, w.actor, lane, true, false);
      } else {
        at.cta->shared->read(at.offset, bytes, w.actor, lane);
      }
      std::memcpy(out, at.cta->shared->data() + at.offset, bytes);
      return;
    }
    case Space::local:
      std::memcpy(out, w.local_memory(lane, address, bytes), bytes);
      return;
    case Space::global:
      if (order == Order::coherent || order == Order::acquire) {
        acquire_flag(w, address);
        acquire_from_grid(w, address, order == Order::acquire);
      }
      read_global(w, lane, address, bytes, out, order);
      return;
    default:
      std::memcpy(out, global_pointer(w, lane, address, bytes, false), bytes);
      return;
  }
}

void write_memory(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes,
                  const void* data, Order order) {
  if (space == Space::none) space = generic_space(&address);
  check_aligned(address, bytes, lane);
  switch (space) {
    case Space::shared: {
      SharedPlace at = shared_place(w, address, lane);
      check_no_mbarrier(*at.cta, at.offset, bytes, lane);
      if (order == Order::coherent) {
        at.cta->shared->atomic(at.offset, bytes, w.actor, lane, false, true);
        release_flag(w, uint64_t{at.cta->rank} << 32 | at.offset);
      } else {
        at.cta->shared->write(at.offset, bytes, w.actor, lane, Writer::generic);
      }
      std::memcpy(at.cta->shared->data() + at.offset, data, bytes);
      if (order == Order::coherent) ++w.m->progress;
      return;
    }
    case Space::local:
      std::memcpy(w.local_memory(lane, address, bytes), data, bytes);
      return;
    case Space::global:
      write_global(w, lane, address, bytes, data, order);
      if (order == Order::coherent) {
        release_flag(w, address);
        release_to_grid(w, address, false);
        ++w.m->progress;
      }
      return;
    default:
      fault_at("global-read-only", "writes a kernel parameter or constant", lane, address);
  }
}

void count_global(Warp& w, const uint64_t* address, uint32_t lanes, uint32_t bytes) {
  uint64_t list[64];
  int n = 0;
  for (uint32_t l = lanes; l; l &= l - 1) {
    uint64_t s = address[std::countr_zero(l)] >> 5;
    if (!n || list[n - 1] != s) list[n++] = s;
  }
  if (!std::is_sorted(list, list + n)) std::sort(list, list + n);
  InstCounters& c = w.counters();
  c.sectors += static_cast<uint64_t>(std::unique(list, list + n) - list);
  c.global_bytes += static_cast<uint64_t>(std::popcount(lanes)) * bytes;
}

// 128 bytes per wavefront: 8-byte accesses go in two halves, 16-byte ones in four quarters. Lanes
// that read the same word share it.
void count_shared(Warp& w, const uint64_t* address, uint32_t lanes, uint32_t bytes) {
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
