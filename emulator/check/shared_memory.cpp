#include "check/shared_memory.h"

#include <bit>
#include <cstring>

#include "check/report.h"

namespace l4k::emu {
namespace {

// Room behind the last word, for the checks of whole accesses.
uint32_t rounded(uint32_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

SharedMemory::SharedMemory(uint32_t bytes, uint32_t actors, uint32_t per_cta, uint32_t warps)
    : data_(rounded(bytes), 0xff),
      shadow_(rounded(bytes), actors),
      pending_read_(rounded(bytes) / 16, 0),
      pending_write_(rounded(bytes) / 4, 0),
      per_cta_(per_cta),
      warps_(warps) {}

void SharedMemory::open_reserved(uint32_t bytes) {
  first_ -= bytes;
  std::fill_n(data_.begin() + first_, bytes, uint8_t{0});
  shadow_.visit(first_, bytes, [](Cell& c, uint32_t, uint32_t) { c.defined = true; });
}

void SharedMemory::out_of_bounds(uint32_t address, uint32_t bytes, int lane) const {
  fault_at("shared-out-of-bounds",
           std::to_string(bytes) + " bytes at shared address " + hex(address) +
               ", but the CTA's shared memory is [0x400, " + hex(data_.size()) + ")",
           lane, address);
}

// "warp 3", "the copy engine", and the CTA's rank when it is another one.
std::string SharedMemory::name(uint32_t epoch, uint32_t own) const {
  uint32_t id = epoch_actor(epoch), index = id % per_cta_;
  std::string s = index < warps_ ? "warp " + std::to_string(index)
                  : index == warps_
                      ? "the copy engine"
                      : "the wgmma of warpgroup " + std::to_string(index - warps_ - 1);
  if (id / per_cta_ != own / per_cta_) s += " of CTA rank " + std::to_string(id / per_cta_);
  return s;
}

void SharedMemory::race(const char* what, uint32_t address, uint32_t epoch, const Actor& who,
                        int lane) const {
  complain_at("shared-race",
              std::string(what) + " " + name(epoch, who.id) +
                  " with no barrier between that and this access",
              lane, address);
}

static std::string lane_name(uint8_t lane) {
  return lane < Shadow::kLanes ? " lane " + std::to_string(lane) : " other lanes";
}

void SharedMemory::warp_race(const char* what, uint32_t address, uint8_t other, int lane) const {
  complain_at(
      "shared-race",
      what + lane_name(other) + " of this warp with no __syncwarp between that and this access",
      lane, address);
}

void SharedMemory::volatile_race(const char* what, uint32_t address, uint8_t other,
                                 int lane) const {
  complain_at("volatile-race",
              what + lane_name(other) +
                  " of this warp with no __syncwarp between: volatile does not keep lanes in step",
              lane, address);
}

void SharedMemory::in_flight(const char* what, uint32_t address, int lane) const {
  complain_at("shared-in-flight", what, lane, address);
}

void SharedMemory::pend_read(uint32_t address, uint32_t bytes, int delta) {
  for (uint32_t c = address / 16; c <= (address + bytes - 1) / 16; ++c)
    pending_read_[c] = static_cast<uint16_t>(pending_read_[c] + delta);
}
void SharedMemory::pend_write(uint32_t address, uint32_t bytes, int delta) {
  for (uint32_t w = address / 4; w <= (address + bytes - 1) / 4; ++w)
    pending_write_[w] = static_cast<uint16_t>(pending_write_[w] + delta);
}

uint32_t SharedMemory::read(uint32_t address, uint32_t bytes, const Actor& who, int lane) {
  check_bounds(address, bytes, lane);
  if (is_written(address, bytes))
    in_flight("read of shared memory that an asynchronous copy in flight will write", address,
              lane);
  uint32_t mine = who.epoch(), undefined = 0;
  shadow_.visit(address, bytes, [&](Cell& c, uint32_t at, uint32_t n) {
    if (!c.defined) undefined |= ((1u << n) - 1) << (at - address);
    if (c.writer && !ordered(c.writer, who.seen))
      race(c.kind == Writer::cp_async || c.kind == Writer::async_proxy
               ? "read of a word copied asynchronously by"
               : "read of a word written by",
           at, c.writer, who, lane);
    if (c.writer == mine && c.writer_lane != lane && c.kind <= Writer::cp_async)
      warp_race("read of a word written by", at, c.writer_lane, lane);
    shadow_.note_read(c, mine, who.seen, static_cast<uint8_t>(lane));
  });
  return undefined;
}

// Whether these are whole words inside, and f(address of a word, lane) holds for each.
template <typename F>
bool SharedMemory::all_words(const uint64_t* address, uint32_t lanes, uint32_t bytes, F&& f) const {
  if (bytes < 4) return false;
  for (; lanes; lanes &= lanes - 1) {
    uint32_t lane = static_cast<uint32_t>(std::countr_zero(lanes));
    uint64_t at = address[lane];
    if (at < first_ || at > data_.size() - bytes || (at & (bytes - 1))) return false;
    for (uint64_t end = at + bytes; at < end; at += 4)
      if (!f(static_cast<uint32_t>(at), static_cast<uint8_t>(lane))) return false;
  }
  return true;
}

bool SharedMemory::read_lanes(const uint64_t* address, uint32_t lanes, uint32_t bytes,
                              const Actor& who) {
  uint32_t mine = who.epoch();
  return all_words(address, lanes, bytes, [&](uint32_t at, uint8_t lane) {
    return !pending_write_[at / 4] && shadow_.read_quietly(shadow_.word(at), mine, who.seen, lane);
  });
}

bool SharedMemory::write_lanes(const uint64_t* address, uint32_t lanes, uint32_t bytes,
                               const Actor& who) {
  uint32_t mine = who.epoch();
  return all_words(address, lanes, bytes, [&](uint32_t at, uint8_t lane) {
    return !pending_write_[at / 4] && !pending_read_[at / 16] &&
           shadow_.write_quietly(shadow_.word(at), mine, who.seen, lane);
  });
}

// A store over another's with no order between them matters if it changes the value.
void SharedMemory::check_overwrite(const Cell& c, uint32_t address, const void* data,
                                   uint32_t bytes, const Actor& who, int lane) const {
  bool same = data && c.defined && !std::memcmp(&data_[address], data, bytes);
  if (!ordered(c.writer, who.seen)) {
    if (!same) return race("overwrites a word written by", address, c.writer, who, lane);
    complain_at("same-value-race",
                "stores what " + name(c.writer, who.id) +
                    " has stored there, with no barrier between that and this access",
                lane, address);
  } else if (c.writer == who.epoch() && c.writer_lane != lane && data &&
             c.kind == Writer::generic) {
    if (!same)
      return warp_race("stores another value than, at the same place,", address, c.writer_lane,
                       lane);
    complain_at("same-value-race",
                "stores what" + lane_name(c.writer_lane) +
                    " of this warp has stored there, with no " + "__syncwarp between",
                lane, address);
  }
}

void SharedMemory::write(uint32_t address, uint32_t bytes, const Actor& who, int lane, Writer kind,
                         const void* data) {
  check_bounds(address, bytes, lane);
  if (is_read(address, bytes))
    in_flight("overwrites shared memory that a wgmma or bulk store in flight still reads", address,
              lane);
  if (kind != Writer::cp_async && is_written(address, bytes))
    in_flight("writes shared memory that an asynchronous copy in flight will write", address, lane);
  uint32_t mine = who.epoch();
  shadow_.visit(address, bytes, [&](Cell& c, uint32_t at, uint32_t n) {
    if (c.reader) {
      if (c.reader == mine && c.reader_lane != lane)
        warp_race("overwrites a word read by", at, c.reader_lane, lane);
      if (uint32_t culprit = shadow_.unordered_read(c, who.seen))
        race("overwrites a word read by", at, culprit, who, lane);
      shadow_.forget_reads(c);
    }
    if (c.writer && (c.writer == mine ? c.writer_lane != lane : !ordered(c.writer, who.seen)))
      check_overwrite(c, at, data ? static_cast<const uint8_t*>(data) + (at - address) : nullptr, n,
                      who, lane);
    c.writer = mine, c.writer_lane = static_cast<uint8_t>(lane);
    c.kind = kind, c.defined = true;
  });
}

uint32_t SharedMemory::strong_read(uint32_t address, uint32_t bytes, const Actor& who, int lane,
                                   Writer kind) {
  check_bounds(address, bytes, lane);
  if (is_written(address, bytes))
    in_flight("access to shared memory that an asynchronous copy in flight will write", address,
              lane);
  uint32_t undefined = 0;
  shadow_.visit(address, bytes, [&](Cell& c, uint32_t at, uint32_t n) {
    if (!c.defined) undefined |= ((1u << n) - 1) << (at - address);
    if (c.writer && c.kind < Writer::atomic && !ordered(c.writer, who.seen))
      race("atomic or volatile access to a word written by", at, c.writer, who, lane);
    if (kind != Writer::volatile_) return;
    if (c.kind == Writer::volatile_ && who.unsynced(c.writer) && c.writer_lane != lane)
      volatile_race("volatile read of a word written by", at, c.writer_lane, lane);
    bool others = who.unsynced(c.volatile_reader) && c.volatile_lane != lane;
    c.volatile_reader = who.epoch();
    c.volatile_lane = others ? Shadow::kLanes : static_cast<uint8_t>(lane);
  });
  return undefined;
}

void SharedMemory::strong_write(uint32_t address, uint32_t bytes, const Actor& who, int lane,
                                Writer kind) {
  check_bounds(address, bytes, lane);
  if (is_written(address, bytes))
    in_flight("access to shared memory that an asynchronous copy in flight will write", address,
              lane);
  if (is_read(address, bytes))
    in_flight("overwrites shared memory that a wgmma or bulk store in flight still reads", address,
              lane);
  shadow_.visit(address, bytes, [&](Cell& c, uint32_t at, uint32_t) {
    if (c.writer && c.kind < Writer::atomic && !ordered(c.writer, who.seen))
      race("atomic or volatile access to a word written by", at, c.writer, who, lane);
    if (uint32_t culprit = shadow_.unordered_read(c, who.seen))
      race("atomic or volatile write to a word read by", at, culprit, who, lane);
    if (kind == Writer::volatile_ && who.unsynced(c.volatile_reader) && c.volatile_lane != lane)
      volatile_race("volatile write to a word read by", at, c.volatile_lane, lane);
    c.writer = who.epoch(), c.writer_lane = static_cast<uint8_t>(lane);
    c.kind = kind, c.defined = true;
  });
}

bool SharedMemory::check_async_read(uint32_t address, uint32_t bytes, const Actor& who,
                                    bool strict) {
  check_bounds(address, bytes, -1);
  if (is_written(address, bytes))
    in_flight("an asynchronous operation reads shared memory that a copy in flight will write",
              address, -1);
  bool all_defined = true;
  shadow_.visit(address, bytes, [&](Cell& c, uint32_t at, uint32_t) {
    all_defined &= c.defined;
    if (!c.writer) return;
    if (!ordered(c.writer, who.seen))
      race("asynchronous read of a word written by", at, c.writer, who, -1);
    bool fenced = c.kind == Writer::async_proxy || (c.kind == Writer::cp_async && !strict);
    if (!fenced && !ordered(c.writer, who.proxied))
      complain_at("proxy-fence-missing",
                  "wgmma or a bulk copy reads shared memory written by " + name(c.writer, who.id) +
                      " without a fence.proxy.async between",
                  -1, at);
  });
  return all_defined;
}

void SharedMemory::note_read(uint32_t address, uint32_t bytes, const Actor& who) {
  shadow_.visit(address, bytes, [&](Cell& c, uint32_t, uint32_t) {
    shadow_.note_read(c, who.epoch(), who.seen, Shadow::kLanes);
  });
}

void SharedMemory::forget(uint32_t address, uint32_t bytes, const Origin& from) {
  shadow_.visit(address, bytes, [](Cell& c, uint32_t, uint32_t) { c.defined = false; });
  if (from) undefined_.set(address, bytes, from);
  else undefined_.clear(address, bytes);
}

Origin SharedMemory::origin(uint32_t address, uint32_t bytes) const {
  return undefined_.origin(address, bytes);
}

void SharedMemory::note_engine_read(uint32_t address, uint32_t epoch, const Clock& seen) {
  shadow_.visit(address, 16, [&](Cell& c, uint32_t, uint32_t) {
    shadow_.note_read(c, epoch, seen, Shadow::kLanes);
  });
}

void SharedMemory::check_async_write(uint32_t address, uint32_t bytes, const Actor& who) {
  check_bounds(address, bytes, -1);
  if (is_read(address, bytes))
    in_flight("a copy overwrites shared memory that a wgmma or bulk store in flight still reads",
              address, -1);
  if (is_written(address, bytes))
    in_flight("a copy writes shared memory that another copy in flight will write", address, -1);
  shadow_.visit(address, bytes, [&](Cell& c, uint32_t at, uint32_t) {
    if (c.writer && !ordered(c.writer, who.seen))
      race("copy over a word written by", at, c.writer, who, -1);
    if (c.writer && c.kind == Writer::generic && !ordered(c.writer, who.proxied))
      complain_at("proxy-fence-missing",
                  "a bulk copy overwrites shared memory written by " + name(c.writer, who.id) +
                      " without a fence.proxy.async between",
                  -1, at);
    if (uint32_t culprit = shadow_.unordered_read(c, who.seen))
      race("copy over a word read by", at, culprit, who, -1);
  });
}

void SharedMemory::note_async_write(uint32_t address, uint32_t bytes, uint32_t epoch) {
  shadow_.visit(address, bytes, [&](Cell& c, uint32_t, uint32_t) {
    shadow_.forget_reads(c);
    c.writer = epoch, c.writer_lane = Shadow::kLanes;
    c.kind = Writer::async_proxy, c.defined = true;
  });
}

}  // namespace l4k::emu
