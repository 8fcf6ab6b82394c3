#include "machine/core/global.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "machine/core/memory.h"

namespace l4k::emu {
namespace {

uint32_t sector_mask(uint64_t sector, uint64_t address, uint64_t bytes) {
  uint64_t lo = std::max(address, sector) - sector,
           hi = std::min(address + bytes, sector + 32) - sector;
  return static_cast<uint32_t>(((uint64_t{1} << hi) - 1) & ~((uint64_t{1} << lo) - 1));
}

std::string name_cta(uint32_t cta) { return "CTA " + std::to_string(cta - 1) + " (linear index)"; }

// One access of a warp, while its sectors are gone through.
class Tracker {
 public:
  // Without lanes: one access of `lane`.
  Tracker(Warp& w, Access how, const uint64_t* address, uint32_t lanes, uint64_t bytes, int lane)
      : w_(w),
        m_(*w.m),
        l_(*w.cta->cluster->launch),
        me_(w.cta->linear + 1),
        epoch_(w.actor.epoch()),
        tag_(static_cast<uint16_t>(l_.id)),
        how_(how),
        in_(m_.landing() ? m_.landing() : &w.current()),
        chained_(l_.programmatic || m_.followed(l_)),
        address_(address),
        lanes_(lanes),
        bytes_(bytes),
        lane_(lane) {}
  void note(uint64_t at, uint32_t mask);
  bool buffered() const { return buffered_; }
  const LaneValues* values = nullptr;  // of a plain store

 private:
  bool stores() const { return how_ >= Access::write && how_ <= Access::bulk_write; }
  bool plain() const { return how_ <= Access::nc_read; }  // reads
  void check_overlap(const Sector& s, uint64_t at, uint32_t mask);
  void check_warps(const Sector& s, uint64_t at, uint32_t mask);
  void check_ctas(const Sector& s, uint64_t at, uint32_t mask);
  void check_overwrite(const Sector& s, uint64_t at, uint32_t mask);
  uint32_t changed(const uint8_t (&old)[32], uint64_t at, uint32_t mask) const;
  // That warp of this CTA, or that other CTA, has no order between its access then and this one.
  bool unordered_warp(uint32_t epoch, uint64_t time) const {
    return !ordered(epoch, w_.actor.seen) &&
           (l_.released[me_ - 1] < time || w_.visibility.acquired < time);
  }
  bool unreleased(uint32_t cta, uint64_t time) const {
    return l_.released[cta - 1] < time || (l_.tracks_flags && w_.cta->grid_seen[cta - 1] < time);
  }
  bool unordered_cta(uint32_t cta, uint64_t time) const {
    return unreleased(cta, time) || w_.visibility.acquired < time;
  }
  void note_operation(uint64_t at, uint32_t mask);
  void note_read(Sector& s, uint32_t mask);
  void note_write(Sector& s, uint64_t at, uint32_t mask);
  void report(KindName kind, std::string what, uint64_t at, uint32_t mask) const;

  Warp& w_;
  Machine& m_;
  Launch& l_;
  uint32_t me_, epoch_;
  uint16_t tag_;
  Access how_;
  const Inst* in_;
  bool chained_, buffered_ = false;
  const uint64_t* address_;
  uint32_t lanes_;
  uint64_t bytes_;
  int lane_;
};

// With the first lane that touches one of the bytes of this sector.
void Tracker::report(KindName kind, std::string what, uint64_t at, uint32_t mask) const {
  for (uint32_t l = lanes_; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    uint64_t a = address_[lane];
    if (a < at + 32 && a + bytes_ > at && (sector_mask(at, a, bytes_) & mask))
      return complain_at(kind, std::move(what), lane, a);
  }
  complain_at(kind, std::move(what), lane_, *address_);
}

// Dependent launches: before its wait, a kernel may touch nothing that a launch touches which may
// still run, and before its end nothing that the next one has touched.
void Tracker::check_overlap(const Sector& s, uint64_t at, uint32_t mask) {
  auto not_before = [&](uint16_t other, uint32_t launch) {
    return static_cast<uint16_t>(other - launch) < 0x8000;
  };
  auto overlaps = [&](uint16_t other) {
    if (!other || other == tag_) return false;
    return not_before(other, tag_) ||
           (!w_.has_waited() && not_before(other, l_.precedence.complete));
  };
  if ((s.written & mask) && overlaps(s.launch)) {
    std::string what = stores() ? "writes" : "reads";
    if (not_before(s.launch, l_.precedence.ended))
      report("dependency-race",
             what + " what an overlapping kernel wrote with no griddepcontrol.wait between", at,
             s.written & mask);
    else
      report("dependency-wait-late",
             what +
                 " before griddepcontrol.wait what the kernel before it wrote, which has ended "
                 "but may not have been made visible",
             at, s.written & mask);
  }
  if (!stores() && how_ != Access::atomic) return;
  uint32_t last = overlaps(s.reader_launch) && not_before(s.reader_launch, l_.precedence.ended)
                      ? s.read & mask
                      : 0;
  bool others = s.early_reader != tag_ && m_.find_launch(s.early_reader);
  uint32_t early = others ? s.early_read & mask : 0;
  if (last | early)
    report("dependency-race",
           "writes what an overlapping kernel read with no griddepcontrol.wait between", at,
           last | early);
}

// Warps of one CTA: an access conflicts with another warp's unless a barrier orders them, or a
// detour through the grid does.
void Tracker::check_warps(const Sector& s, uint64_t at, uint32_t mask) {
  auto race = [&](const char* what, uint32_t epoch, const char* did, uint32_t bytes) {
    report("global-race",
           what + std::to_string(epoch_actor(epoch) - w_.cta->warps[0]->actor.id) +
               " of this CTA " + did + ", with no barrier between",
           at, bytes);
  };
  bool writes = stores();
  if (!writes && s.launch == tag_ && s.owner == me_ && (s.writer_bytes & mask) &&
      unordered_warp(s.writer, s.write_time))
    race("reads what warp ", s.writer, "wrote", s.writer_bytes & mask);
  if (writes && s.reader_launch == tag_ && s.reader == me_ && (s.reading_bytes & mask) &&
      unordered_warp(s.reading, s.read_time))
    race("writes what warp ", s.reading, "has read", s.reading_bytes & mask);
}

// CTAs of one launch: an access conflicts with another CTA's unless that one released something to
// the grid after its access and this warp acquired something later still.
void Tracker::check_ctas(const Sector& s, uint64_t at, uint32_t mask) {
  bool writes = stores();
  uint32_t stale = s.launch == tag_ && s.owner != me_ ? s.last_written & mask : 0;
  if (!writes && stale && unordered_cta(s.owner, s.write_time)) {
    // Where only the reader's fence is missing, the value is old if this CTA's L1 had it before.
    bool read_before = s.reader == me_ && s.reader_launch == tag_ && s.read_time < s.write_time;
    bool observed = !unreleased(s.owner, s.write_time) && w_.visibility.observed >= s.write_time;
    if (observed && !read_before)
      report("acquire-fence-missing",
             "reads what " + name_cta(s.owner) +
                 " wrote and released, with no fence after the relaxed access that saw that",
             at, stale);
    else
      report("stale-global-read",
             "reads what " + name_cta(s.owner) +
                 " wrote, with no release there and acquire here between",
             at, stale);
  }
  if (writes && s.reader_launch == tag_ && (s.last_read & mask) && s.reader && s.reader != me_ &&
      unordered_cta(s.reader, s.read_time))
    report("stale-global-read",
           "writes what " + name_cta(s.reader) +
               " has read, with no release there and acquire here "
               "between: the read may come before or after",
           at, s.last_read & mask);
}

// What a CTA has left in a sector, published or not.
static void read_stored(const Launch& l, uint32_t cta, uint32_t writer, uint64_t at,
                        uint8_t (&bytes)[32]) {
  std::memcpy(bytes, reinterpret_cast<const void*>(at), 32);
  l.held.read(at, bytes, 32);
  for (const auto& cluster : l.resident)
    for (const auto& c : cluster->ctas) {
      if (c->linear != cta) continue;
      c->stores.read(at, bytes, 32);
      for (const auto& w : c->warps)
        if (w->actor.id == epoch_actor(writer)) w->stores.read(at, bytes, 32);
    }
}

// Of these bytes, those to which this store gives another value.
uint32_t Tracker::changed(const uint8_t (&old)[32], uint64_t at, uint32_t mask) const {
  uint32_t differ = 0;
  for (uint32_t l = lanes_; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    uint64_t a = address_[lane];
    if (a < at || a >= at + 32) continue;
    for (uint32_t b = 0; b < bytes_; ++b)
      differ |= uint32_t{(*values)[lane][b] != old[a - at + b]} << (a - at + b);
  }
  return differ & mask;
}

// A plain store over another's with no order between them matters if it changes the value.
void Tracker::check_overwrite(const Sector& s, uint64_t at, uint32_t mask) {
  if (s.launch != tag_ || !s.plainly_written) return;
  bool own = s.owner == me_;
  uint32_t over = mask & (own ? s.writer_bytes : s.last_written);
  if (!over ||
      !(own ? unordered_warp(s.writer, s.write_time) : unordered_cta(s.owner, s.write_time)))
    return;
  uint8_t old[32];
  read_stored(l_, s.owner - 1, s.writer, at, old);
  uint32_t differ = changed(old, at, over);
  uint32_t warp = epoch_actor(s.writer) % l_.actors_per_cta();
  std::string who = own ? "warp " + std::to_string(warp) + " of this CTA" : name_cta(s.owner);
  if (differ)
    report("global-race",
           "stores another value than " + who + " has stored there, in no order with it", at,
           differ);
  else
    report("same-value-race", "stores what " + who + " has stored there, in no order with it", at,
           over);
}

void Tracker::note_read(Sector& s, uint32_t mask) {
  if (s.counted_read != tag_) s.counted_read = tag_, ++l_.distinct_read;
  if (!plain()) return;
  if (chained_ && !w_.has_waited()) {
    s.early_read = s.early_reader == tag_ ? s.early_read | mask : mask;
    s.early_reader = tag_;
  }
  if (how_ == Access::nc_read) {
    s.nc_read = s.nc_reader == tag_ ? s.nc_read | mask : mask;
    s.nc_reader = tag_;
  }
  bool same = s.reader == me_ && s.reader_launch == tag_ && l_.released[me_ - 1] <= s.read_time;
  s.read = s.reader_launch == tag_ ? s.read | mask : mask;
  s.last_read = same ? s.last_read | mask : mask;
  s.reading_bytes = same && s.reading == epoch_ ? s.reading_bytes | mask : mask;
  s.reading = epoch_, s.read_at = in_;
  s.reader = me_, s.reader_launch = tag_, s.read_time = m_.instructions;
}

void Tracker::note_write(Sector& s, uint64_t at, uint32_t mask) {
  if ((s.nc_read & mask) && s.nc_reader == tag_)
    report("nc-read-of-written", "writes what this kernel has read through ld.global.nc", at,
           s.nc_read & mask);
  if (values) check_overwrite(s, at, mask);
  if (!s.written || s.launch != tag_) ++l_.distinct_written;
  bool same = s.owner == me_ && s.launch == tag_ && l_.released[me_ - 1] <= s.write_time;
  s.last_written = same ? s.last_written | mask : mask;
  s.writer_bytes = same && s.writer == epoch_ ? s.writer_bytes | mask : mask;
  s.writer = how_ == Access::atomic ? 0 : epoch_;
  s.written = s.launch == tag_ ? s.written | mask : mask;
  s.launch = tag_, s.owner = me_, s.write_time = m_.instructions;
  s.bulk_written = how_ == Access::bulk_write, s.write_at = in_;
  s.plainly_written = values != nullptr;
  if (how_ == Access::buffered_write) s.unpublished |= mask;
}

// Operations of several streams: what each touches is compared, too.
void Tracker::note_operation(uint64_t at, uint32_t mask) {
  Touching how = how_ == Access::atomic || how_ == Access::coherent_read ? Touching::atomic
                 : stores()                                              ? Touching::write
                                                                         : Touching::read;
  while (mask) {
    auto begin = static_cast<uint32_t>(std::countr_zero(mask)),
         n = static_cast<uint32_t>(std::countr_one(mask >> begin));
    m_.order.note(l_.operation, at + begin, n, how, lane_);
    mask &= ~static_cast<uint32_t>(((uint64_t{1} << n) - 1) << begin);
  }
}

void Tracker::note(uint64_t at, uint32_t mask) {
  if (m_.order.following() && l_.operation) note_operation(at, mask);
  Sector& s = m_.sectors.at(at);
  // Most loads read what no kernel that runs has written.
  if (!chained_ && plain() && s.launch != tag_) return note_read(s, mask);
  if (chained_) check_overlap(s, at, mask);
  if (plain() || stores()) check_ctas(s, at, mask);
  if (how_ != Access::coherent_read) check_warps(s, at, mask);
  if (how_ == Access::nc_read && s.launch == tag_ && (s.written & mask))
    report("nc-read-of-written", "ld.global.nc of memory that this kernel writes", at,
           s.written & mask);
  if (how_ == Access::read && (s.unpublished & mask))
    for (uint32_t b = s.unpublished & mask; b; b &= b - 1)
      check_published(w_, at + static_cast<uint32_t>(std::countr_zero(b)), 1, "reads", lane_);
  buffered_ |= (s.unpublished & mask) != 0;
  if (!stores()) note_read(s, mask);
  if (stores() || how_ == Access::atomic) note_write(s, at, mask);
}

// Calls f(sector's address, bytes in it) for each sector that the lanes touch: once where they are
// near each other, else once a lane. How many there are.
template <typename F>
uint64_t for_each_sector(const LaneAccess& a, F&& f) {
  constexpr uint64_t kSpan = 64;
  uint64_t first = a.low & ~uint64_t{31}, span = (a.high - 1 - first) / 32 + 1, count = 0;
  if (a.dense) {
    for (uint64_t at = first; at < a.high; at += 32) f(at, sector_mask(at, a.low, a.high - a.low));
    return span;
  }
  if (span <= kSpan) {
    uint32_t masks[kSpan];
    std::fill_n(masks, span, 0);
    auto one = static_cast<uint32_t>((uint64_t{1} << a.bytes) - 1);
    for (uint32_t l = a.lanes; l; l &= l - 1) {
      uint64_t offset = a.address[std::countr_zero(l)] - first;
      masks[offset / 32] |= one << offset % 32;
    }
    for (uint64_t i = 0; i < span; ++i)
      if (masks[i]) f(first + i * 32, masks[i]), ++count;
    return count;
  }
  uint64_t list[32];
  for (uint32_t l = a.lanes; l; l &= l - 1) {
    uint64_t address = a.address[std::countr_zero(l)], at = address & ~uint64_t{31};
    f(at, sector_mask(at, address, a.bytes));
    list[count++] = at;
  }
  std::sort(list, list + count);
  return static_cast<uint64_t>(std::unique(list, list + count) - list);
}

void count_sectors(Warp& w, const LaneAccess& a, uint64_t sectors) {
  InstCounters& c = w.counters();
  c.sectors += sectors;
  c.global_bytes += static_cast<uint64_t>(std::popcount(a.lanes)) * a.bytes;
}

}  // namespace

bool note_global(Warp& w, uint64_t address, uint64_t bytes, Access how, int lane) {
  Tracker tracker(w, how, &address, 0, bytes, lane);
  for (uint64_t at = address & ~uint64_t{31}; at < address + bytes; at += 32)
    tracker.note(at, sector_mask(at, address, bytes));
  return tracker.buffered();
}

uint8_t* global_pointer(Warp& w, int lane, uint64_t address, uint64_t bytes, bool write) {
  const Range* r = w.m->ranges.find(address, bytes);
  if (!r)
    fault_at("global-out-of-bounds",
             std::string(write ? "writes " : "reads ") + std::to_string(bytes) +
                 " bytes: " + w.m->memory.describe(address),
             lane, address);
  if (r->ended && w.cta->cluster->launch->id >= r->ended)
    complain_at("use-after-free",
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
      complain_at("stale-global-read",
                  std::string(what) + " what another CTA (linear index " +
                      std::to_string(s.owner - 1) +
                      ") stored and has not published with a fence or release of gpu scope",
                  lane, a);
  }
}

LaneAccess::LaneAccess(const uint64_t* address, uint32_t lanes, uint32_t bytes)
    : address(address), lanes(lanes), bytes(bytes), low(~uint64_t{0}), high(0) {
  if (lanes == kAllLanes) {
    uint64_t run = 0, differ = 0;
    for (uint64_t i = 0; i < 32; ++i) {
      run |= address[i] - (address[0] + i * bytes);
      differ |= address[i] ^ address[0];
    }
    dense = !run || !differ;
    low = address[0], high = address[run ? 0 : 31] + bytes;
    if (dense) return;
  }
  for (uint32_t l = lanes; l; l &= l - 1) {
    uint64_t a = address[std::countr_zero(l)];
    low = std::min(low, a), high = std::max(high, a + bytes);
  }
  dense = high - low == bytes;
}

bool accessible(Warp& w, const LaneAccess& a, bool write) {
  auto allowed = [&](uint64_t at, uint64_t n) {
    const Range* r = w.m->ranges.find(at, n);
    return r && !r->ended && !(write && r->read_only());
  };
  uint64_t all = a.low;
  if (!a.dense)
    for (uint32_t l = a.lanes; l; l &= l - 1) all |= a.address[std::countr_zero(l)];
  if (all & (a.bytes - 1)) return false;
  if (allowed(a.low, a.high - a.low)) return true;
  for (uint32_t l = a.lanes; l; l &= l - 1)
    if (!allowed(a.address[std::countr_zero(l)], a.bytes)) return false;
  return true;
}

bool touch_global(Warp& w, const LaneAccess& a, Access how, const LaneValues* values) {
  Tracker tracker(w, how, a.address, a.lanes, a.bytes, std::countr_zero(a.lanes));
  tracker.values = values;
  uint64_t sectors =
      for_each_sector(a, [&](uint64_t at, uint32_t mask) { tracker.note(at, mask); });
  count_sectors(w, a, sectors);
  return tracker.buffered();
}

void read_touched(const Warp& w, uint64_t address, void* data, uint32_t bytes, bool buffered) {
  std::memcpy(data, reinterpret_cast<const void*>(address), bytes);
  if (!buffered) return;
  w.cta->stores.read(address, data, bytes);
  w.stores.read(address, data, bytes);
}

void write_touched(Warp& w, uint64_t address, const void* data, uint32_t bytes, Access how) {
  if (how == Access::buffered_write) return w.stores.write(address, data, bytes);
  if (w.m->buffers_stores()) {
    w.stores.erase(address, bytes);
    w.cta->stores.erase(address, bytes);
  }
  std::memcpy(reinterpret_cast<void*>(address), data, bytes);
}

void count_global(Warp& w, const uint64_t* address, uint32_t lanes, uint32_t bytes) {
  LaneAccess a(address, lanes, bytes);
  count_sectors(w, a, for_each_sector(a, [](uint64_t, uint32_t) {}));
}

}  // namespace l4k::emu
