#include "check/shared_memory.h"

#include "check/report.h"

namespace l4k::emu {

void Actor::tick() {
  if (++seen[id] >= kMaxClock) fault("not-implemented", "more than 4 million barriers in one warp");
}

SharedMemory::SharedMemory(uint32_t bytes, uint32_t actors, uint32_t per_cta, uint32_t warps)
    : data_((bytes + 15) / 16 * 16, 0xff), actors_(actors), per_cta_(per_cta), warps_(warps) {
  size_t words = data_.size() / 4;
  writer_.assign(words, 0);
  reader_.assign(words, 0);
  init_.assign(words, 0);
  kind_.assign(words, Writer::generic);
  writer_lane_.assign(words, kLanes);
  reader_lane_.assign(words, kLanes);
  pending_read_.assign(data_.size() / 16, 0);
  pending_write_.assign(data_.size() / 16, 0);
}

void SharedMemory::open_reserved(uint32_t bytes) {
  std::fill_n(data_.begin() + (first_ - bytes), bytes, uint8_t{0});
  std::fill_n(init_.begin() + (first_ - bytes) / 4, bytes / 4, uint8_t{0xf});
  first_ -= bytes;
}

void SharedMemory::check_bounds(uint32_t address, uint32_t bytes, int lane) const {
  if (address < first_ || address > data_.size() || bytes > data_.size() - address)
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
  fault_at("shared-race",
           std::string(what) + " " + name(epoch, who.id) +
               " with no barrier between that and this access",
           lane, address);
}

void SharedMemory::warp_race(const char* what, uint32_t address, uint8_t other, int lane) const {
  std::string who = other < kLanes ? " lane " + std::to_string(other) : " other lanes";
  fault_at("shared-race",
           what + who + " of this warp with no __syncwarp between that and this access", lane,
           address);
}

void SharedMemory::in_flight(const char* what, uint32_t address, int lane) const {
  fault_at("shared-in-flight", what, lane, address);
}

void SharedMemory::pend(std::vector<uint16_t>& v, uint32_t address, uint32_t bytes, int delta) {
  for (uint32_t c = address / 16; c <= (address + bytes - 1) / 16; ++c)
    v[c] = static_cast<uint16_t>(v[c] + delta);
}

void SharedMemory::note_word_read(uint32_t w, uint32_t mine, const Clock& seen, uint8_t lane) {
  uint32_t old = reader_[w], id = epoch_actor(mine), clock = epoch_clock(mine);
  if (old == mine) {
    if (reader_lane_[w] != lane) reader_lane_[w] = kLanes;
    return;
  }
  reader_lane_[w] = lane;
  if (old >= kReadSet) {
    read_sets_[old - kReadSet][id] = clock;
  } else if (!old || ordered(old, seen)) {
    reader_[w] = mine;
  } else {
    uint32_t index;
    if (free_sets_.empty()) {
      index = static_cast<uint32_t>(read_sets_.size());
      read_sets_.emplace_back(actors_, 0);
    } else {
      index = free_sets_.back();
      free_sets_.pop_back();
      read_sets_[index].assign(actors_, 0);
    }
    read_sets_[index][epoch_actor(old)] = epoch_clock(old);
    read_sets_[index][id] = clock;
    reader_[w] = kReadSet | index;
  }
}

bool SharedMemory::reads_ordered(uint32_t w, const Actor& who, uint32_t* culprit) const {
  uint32_t old = reader_[w];
  *culprit = old;
  if (!old) return true;
  if (old < kReadSet) return ordered(old, who.seen);
  const Clock& set = read_sets_[old - kReadSet];
  for (uint32_t a = 0; a < actors_; ++a)
    if (set[a] > who.seen[a]) {
      *culprit = make_epoch(a, set[a]);
      return false;
    }
  return true;
}

void SharedMemory::read(uint32_t address, uint32_t bytes, const Actor& who, int lane) {
  check_bounds(address, bytes, lane);
  if (pending_write_[address / 16])
    in_flight("read of shared memory that an asynchronous copy in flight will write", address,
              lane);
  uint32_t end = address + bytes;
  for (uint32_t w = address / 4; w <= (end - 1) / 4; ++w) {
    uint32_t lo = std::max(address, w * 4) & 3, hi = std::min(end - w * 4, 4u);
    uint32_t mask = ((1u << hi) - 1) & ~((1u << lo) - 1);
    if ((init_[w] & mask) != mask)
      fault_at("uninitialised-shared-read", "read of shared memory that nobody wrote", lane,
               w * 4 + lo);
    if (writer_[w] && (init_[w] >> 4 & mask) && !ordered(writer_[w], who.seen))
      race(kind_[w] == Writer::generic ? "read of a word written by"
                                       : "read of a word copied asynchronously by",
           w * 4, writer_[w], who, lane);
    if (writer_[w] == who.epoch() && (init_[w] >> 4 & mask) && writer_lane_[w] != lane &&
        kind_[w] <= Writer::cp_async)
      warp_race("read of a word written by", w * 4, writer_lane_[w], lane);
    note_word_read(w, who.epoch(), who.seen, static_cast<uint8_t>(lane));
  }
}

void SharedMemory::write(uint32_t address, uint32_t bytes, const Actor& who, int lane,
                         Writer kind) {
  check_bounds(address, bytes, lane);
  if (pending_read_[address / 16])
    in_flight("overwrites shared memory that a wgmma or bulk store in flight still reads", address,
              lane);
  if (kind != Writer::cp_async && pending_write_[address / 16])
    in_flight("writes shared memory that an asynchronous copy in flight will write", address, lane);
  uint32_t end = address + bytes, mine = who.epoch();
  for (uint32_t w = address / 4; w <= (end - 1) / 4; ++w) {
    uint32_t lo = std::max(address, w * 4) & 3, hi = std::min(end - w * 4, 4u);
    uint32_t mask = ((1u << hi) - 1) & ~((1u << lo) - 1);
    if (writer_[w] == mine) {
      init_[w] = static_cast<uint8_t>(init_[w] | mask | mask << 4);
    } else {
      if (writer_[w] && (init_[w] >> 4 & mask) && !ordered(writer_[w], who.seen))
        race("overwrites a word written by", w * 4, writer_[w], who, lane);
      writer_[w] = mine;
      init_[w] = static_cast<uint8_t>((init_[w] & 15) | mask | mask << 4);
    }
    kind_[w] = kind;
    writer_lane_[w] = static_cast<uint8_t>(lane);
    if (reader_[w]) {
      if (reader_[w] == mine && reader_lane_[w] != lane && mask == 15)
        warp_race("overwrites a word read by", w * 4, reader_lane_[w], lane);
      uint32_t culprit;
      // Parts of a word may belong to different warps; only whole-word accesses are conclusive.
      if (!reads_ordered(w, who, &culprit) && epoch_actor(culprit) != who.id && mask == 15)
        race("overwrites a word read by", w * 4, culprit, who, lane);
      if (reader_[w] >= kReadSet) free_sets_.push_back(reader_[w] - kReadSet);
      reader_[w] = 0;
    }
  }
}

void SharedMemory::atomic(uint32_t address, uint32_t bytes, const Actor& who, int lane, bool reads,
                          bool writes) {
  check_bounds(address, bytes, lane);
  if (pending_write_[address / 16])
    in_flight("access to shared memory that an asynchronous copy in flight will write", address,
              lane);
  if (writes && pending_read_[address / 16])
    in_flight("overwrites shared memory that a wgmma or bulk store in flight still reads", address,
              lane);
  for (uint32_t b = address; b < address + bytes; ++b) {
    uint32_t w = b / 4, bit = 1u << (b & 3);
    if (reads && !(init_[w] & bit))
      fault_at("uninitialised-shared-read", "read of shared memory that nobody wrote", lane, b);
    if (writer_[w] && kind_[w] != Writer::atomic && (init_[w] >> 4 & bit) &&
        !ordered(writer_[w], who.seen))
      race("atomic or volatile access to a word written by", b, writer_[w], who, lane);
    if (!writes) continue;
    uint32_t culprit;
    if (bytes >= 4 && !reads_ordered(w, who, &culprit) && epoch_actor(culprit) != who.id)
      race("atomic or volatile write to a word read by", b, culprit, who, lane);
    init_[w] = static_cast<uint8_t>(init_[w] | bit | bit << 4);
    writer_[w] = who.epoch();
    kind_[w] = Writer::atomic;
  }
}

void SharedMemory::check_async_read(uint32_t address, uint32_t bytes, const Actor& who,
                                    bool strict) {
  check_bounds(address, bytes, -1);
  for (uint32_t c = address / 16; c <= (address + bytes - 1) / 16; ++c)
    if (pending_write_[c])
      in_flight("an asynchronous operation reads shared memory that a copy in flight will write",
                c * 16, -1);
  for (uint32_t w = address / 4; w < (address + bytes) / 4; ++w) {
    if ((init_[w] & 15) != 15)
      fault_at("uninitialised-shared-read",
               "an asynchronous operation reads shared memory that nobody wrote", -1, w * 4);
    uint32_t e = writer_[w];
    if (!e) continue;
    if (!ordered(e, who.seen)) race("asynchronous read of a word written by", w * 4, e, who, -1);
    bool fenced = kind_[w] == Writer::async_proxy || (kind_[w] == Writer::cp_async && !strict);
    if (!fenced && !ordered(e, who.proxied))
      fault_at("proxy-fence-missing",
               "wgmma or a bulk copy reads shared memory written by " + name(e, who.id) +
                   " without a fence.proxy.async between",
               -1, w * 4);
  }
}

void SharedMemory::note_read(uint32_t address, uint32_t bytes, const Actor& who) {
  for (uint32_t w = address / 4; w < (address + bytes + 3) / 4; ++w)
    note_word_read(w, who.epoch(), who.seen, kLanes);
}

void SharedMemory::forget(uint32_t address, uint32_t bytes) {
  for (uint32_t w = address / 4; w < (address + bytes) / 4; ++w) init_[w] &= 0xf0;
}

void SharedMemory::note_engine_read(uint32_t address, uint32_t epoch, const Clock& seen) {
  for (uint32_t w = address / 4; w < address / 4 + 4; ++w) note_word_read(w, epoch, seen, kLanes);
}

void SharedMemory::check_async_write(uint32_t address, uint32_t bytes, const Actor& who) {
  check_bounds(address, bytes, -1);
  for (uint32_t c = address / 16; c <= (address + bytes - 1) / 16; ++c) {
    if (pending_read_[c])
      in_flight("a copy overwrites shared memory that a wgmma or bulk store in flight still reads",
                c * 16, -1);
    if (pending_write_[c])
      in_flight("a copy writes shared memory that another copy in flight will write", c * 16, -1);
  }
  for (uint32_t w = address / 4; w < (address + bytes + 3) / 4; ++w) {
    uint32_t e = writer_[w], culprit;
    if (e && !ordered(e, who.seen)) race("copy over a word written by", w * 4, e, who, -1);
    if (e && kind_[w] == Writer::generic && !ordered(e, who.proxied))
      fault_at("proxy-fence-missing",
               "a bulk copy overwrites shared memory written by " + name(e, who.id) +
                   " without a fence.proxy.async between",
               -1, w * 4);
    if (!reads_ordered(w, who, &culprit)) race("copy over a word read by", w * 4, culprit, who, -1);
  }
}

void SharedMemory::note_async_write(uint32_t address, uint32_t bytes, uint32_t epoch) {
  for (uint32_t w = address / 4; w <= (address + bytes - 1) / 4; ++w) {
    writer_[w] = epoch;
    init_[w] = 0xff;
    kind_[w] = Writer::async_proxy;
    if (reader_[w] >= kReadSet) free_sets_.push_back(reader_[w] - kReadSet);
    reader_[w] = 0;
  }
}

}  // namespace l4k::emu
