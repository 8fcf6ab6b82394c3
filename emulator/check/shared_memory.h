// One CTA's shared memory with its shadow: what is initialised, who wrote and read each word last,
// which chunks a copy or a tensor-core operation in flight still uses.
//
// Order is tracked with vector clocks (FastTrack): an actor is a warp of the cluster or a CTA's
// asynchronous engine, an epoch is (actor, clock), and an access is ordered before another if the
// other's actor has seen its epoch through a barrier. Every warp also carries the clock up to which
// writes are visible to the asynchronous proxy: a proxy fence sets it, barriers pass it on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace l4k::emu {

using Clock = std::vector<uint32_t>;
inline void join(Clock& into, const Clock& from) {
  for (size_t i = 0; i < into.size(); ++i)
    if (from[i] > into[i]) into[i] = from[i];
}

// An epoch is an actor and its clock in one word.
inline constexpr uint32_t kClockBits = 22, kMaxClock = (1u << kClockBits) - 1;
constexpr uint32_t make_epoch(uint32_t actor, uint32_t clock) {
  return actor << kClockBits | clock;
}
constexpr uint32_t epoch_actor(uint32_t epoch) { return epoch >> kClockBits; }
constexpr uint32_t epoch_clock(uint32_t epoch) { return epoch & kMaxClock; }
inline bool ordered(uint32_t epoch, const Clock& clock) {
  return epoch_clock(epoch) <= clock[epoch_actor(epoch)];
}

struct Actor {
  uint32_t id = 0;
  Clock seen;     // epochs ordered before this actor's next access
  Clock proxied;  // the same, and visible to the asynchronous proxy
  uint32_t epoch() const { return make_epoch(id, seen[id]); }
  // Takes on what others had seen when they released; its own clock stays.
  void acquire(const Clock& others_seen, const Clock& others_proxied) {
    uint32_t own = seen[id];
    join(seen, others_seen);
    join(proxied, others_proxied);
    seen[id] = own;
  }
  void tick();  // begins a new epoch: after every release
};

enum class Writer : uint8_t { generic, cp_async, async_proxy, atomic };

class SharedMemory {
 public:
  // Actors of a CTA: its warps in order, its copy engine, the tensor cores of its warpgroups.
  SharedMemory(uint32_t bytes, uint32_t actors, uint32_t per_cta, uint32_t warps);
  uint8_t* data() { return data_.data(); }
  uint32_t size() const { return static_cast<uint32_t>(data_.size()); }

  // Generic accesses. `lane` is for the report only.
  void read(uint32_t address, uint32_t bytes, const Actor& who, int lane);
  void write(uint32_t address, uint32_t bytes, const Actor& who, int lane, Writer kind);
  // Atomic and volatile accesses may race with each other, not with plain ones.
  void atomic(uint32_t address, uint32_t bytes, const Actor& who, int lane, bool reads,
              bool writes);
  // Operand reads of wgmma and bulk stores: check_* when issued, note_read when complete.
  void check_async_read(uint32_t address, uint32_t bytes, const Actor& who, bool strict);
  void note_read(uint32_t address, uint32_t bytes, const Actor& who);
  // A read by an engine that has no clock of its own: `seen` is that of its last user.
  void note_engine_read(uint32_t address, uint32_t epoch, const Clock& seen);
  // Bulk loads: checked when issued, marked when they land.
  void check_async_write(uint32_t address, uint32_t bytes, const Actor& who);
  void note_async_write(uint32_t address, uint32_t bytes, uint32_t epoch);
  // Chunks (16 bytes) that an operation in flight reads or writes.
  void begin_pending_read(uint32_t address, uint32_t bytes) {
    pend(pending_read_, address, bytes, 1);
  }
  void end_pending_read(uint32_t address, uint32_t bytes) {
    pend(pending_read_, address, bytes, -1);
  }
  void begin_pending_write(uint32_t address, uint32_t bytes) {
    pend(pending_write_, address, bytes, 1);
  }
  void end_pending_write(uint32_t address, uint32_t bytes) {
    pend(pending_write_, address, bytes, -1);
  }
  void forget(uint32_t address, uint32_t bytes);  // whole words: uninitialised again
  void check_bounds(uint32_t address, uint32_t bytes, int lane) const;
  void open_reserved(uint32_t bytes);  // zeros below the CTA's own memory

 private:
  std::string name(uint32_t epoch, uint32_t own) const;
  void pend(std::vector<uint16_t>& v, uint32_t address, uint32_t bytes, int delta);
  void note_word_read(uint32_t word, uint32_t epoch, const Clock& seen, uint8_t lane);
  bool reads_ordered(uint32_t word, const Actor& who, uint32_t* culprit) const;
  [[noreturn]] void race(const char* what, uint32_t address, uint32_t epoch, const Actor& who,
                         int lane) const;
  [[noreturn]] void warp_race(const char* what, uint32_t address, uint8_t other, int lane) const;
  [[noreturn]] void in_flight(const char* what, uint32_t address, int lane) const;

  static constexpr uint32_t kReadSet = make_epoch(1023, 0);
  static constexpr uint8_t kLanes = 32;
  std::vector<uint8_t> data_;
  std::vector<uint32_t> writer_;  // epoch of the last write of each word, 0: none
  std::vector<uint32_t> reader_;  // epoch of the last read, or kReadSet | index into read_sets_
  std::vector<uint8_t> init_;     // low nibble: bytes initialised; high: bytes of the last write
  std::vector<uint8_t> writer_lane_, reader_lane_;  // of the last write and read; kLanes: several
  std::vector<Writer> kind_;
  std::vector<uint16_t> pending_read_, pending_write_;
  std::vector<Clock> read_sets_;
  std::vector<uint32_t> free_sets_;
  uint32_t actors_, per_cta_, warps_, first_ = 1024;
};

}  // namespace l4k::emu
