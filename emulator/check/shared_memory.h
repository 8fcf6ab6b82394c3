// One CTA's shared memory: what is defined, whether accesses are ordered, which chunks a copy or a
// tensor-core operation in flight still uses.
#pragma once

#include <string>

#include "check/clocks.h"
#include "check/shadow.h"
#include "check/undefined.h"

namespace l4k::emu {

class SharedMemory {
 public:
  // Actors of a CTA: its warps in order, its copy engine, the tensor cores of its warpgroups.
  SharedMemory(uint32_t bytes, uint32_t actors, uint32_t per_cta, uint32_t warps);
  uint8_t* data() { return data_.data(); }
  uint32_t size() const { return static_cast<uint32_t>(data_.size()); }

  // Generic accesses. Reads return which of the bytes are undefined, a bit each; writes come before
  // the data is in place.
  uint32_t read(uint32_t address, uint32_t bytes, const Actor& who, int lane);
  // Without `data`, what is written is not compared with what is there.
  void write(uint32_t address, uint32_t bytes, const Actor& who, int lane, Writer kind,
             const void* data = nullptr);
  // Plain loads and stores of whole words by several lanes. False: something may be wrong with one of
  // them; then all are to be made one by one, which finds out.
  bool read_lanes(const uint64_t* address, uint32_t lanes, uint32_t bytes, const Actor& who);
  bool write_lanes(const uint64_t* address, uint32_t lanes, uint32_t bytes, const Actor& who);
  // Atomic and volatile accesses may race with each other, not with plain ones; volatile accesses
  // not between the lanes of a warp.
  uint32_t strong_read(uint32_t address, uint32_t bytes, const Actor& who, int lane, Writer kind);
  void strong_write(uint32_t address, uint32_t bytes, const Actor& who, int lane, Writer kind);
  // Operand reads of wgmma and bulk stores: check_* when issued, note_read when complete. Whether
  // all of it is defined.
  bool check_async_read(uint32_t address, uint32_t bytes, const Actor& who, bool strict);
  void note_read(uint32_t address, uint32_t bytes, const Actor& who);
  // A read by an engine that has no clock of its own: `seen` is that of its last user.
  void note_engine_read(uint32_t address, uint32_t epoch, const Clock& seen);
  // Bulk loads: checked when issued, marked when they land.
  void check_async_write(uint32_t address, uint32_t bytes, const Actor& who);
  void note_async_write(uint32_t address, uint32_t bytes, uint32_t epoch);
  // Chunks (16 bytes) that an operation in flight reads, words that one writes.
  void begin_pending_read(uint32_t address, uint32_t bytes) { pend_read(address, bytes, 1); }
  void end_pending_read(uint32_t address, uint32_t bytes) { pend_read(address, bytes, -1); }
  void begin_pending_write(uint32_t address, uint32_t bytes) { pend_write(address, bytes, 1); }
  void end_pending_write(uint32_t address, uint32_t bytes) { pend_write(address, bytes, -1); }
  // Undefined again; `from`: because undefined data was stored.
  void forget(uint32_t address, uint32_t bytes, const Origin& from = {});
  bool defined(uint32_t address) const { return shadow_.defined(address); }
  // Where the undefined data among these bytes came from, if it was stored.
  Origin origin(uint32_t address, uint32_t bytes) const;
  void check_bounds(uint32_t address, uint32_t bytes, int lane) const {
    if (address < first_ || address > data_.size() || bytes > data_.size() - address)
      out_of_bounds(address, bytes, lane);
  }
  void open_reserved(uint32_t bytes);  // zeros below the CTA's own memory

 private:
  std::string name(uint32_t epoch, uint32_t own) const;
  void pend_read(uint32_t address, uint32_t bytes, int delta);
  void pend_write(uint32_t address, uint32_t bytes, int delta);
  template <typename F>
  bool all_words(const uint64_t* address, uint32_t lanes, uint32_t bytes, F&& f) const;
  bool is_read(uint32_t address, uint32_t bytes) const {  // by an operation in flight
    return any(pending_read_, address / 16, (address + bytes - 1) / 16);
  }
  bool is_written(uint32_t address, uint32_t bytes) const {
    return any(pending_write_, address / 4, (address + bytes - 1) / 4);
  }
  static bool any(const std::vector<uint16_t>& counts, uint32_t first, uint32_t last) {
    uint32_t sum = counts[first];
    while (first < last) sum |= counts[++first];
    return sum;
  }
  [[gnu::cold]] void check_overwrite(const Cell& c, uint32_t address, const void* data,
                                     uint32_t bytes, const Actor& who, int lane) const;
  [[gnu::cold]] void race(const char* what, uint32_t address, uint32_t epoch, const Actor& who,
                          int lane) const;
  [[gnu::cold]] void warp_race(const char* what, uint32_t address, uint8_t other, int lane) const;
  [[gnu::cold]] void volatile_race(const char* what, uint32_t address, uint8_t other,
                                   int lane) const;
  [[noreturn]] void out_of_bounds(uint32_t address, uint32_t bytes, int lane) const;
  [[gnu::cold]] void in_flight(const char* what, uint32_t address, int lane) const;

  std::vector<uint8_t> data_;
  Shadow shadow_;
  UndefinedBytes undefined_;
  std::vector<uint16_t> pending_read_, pending_write_;
  uint32_t per_cta_, warps_, first_ = 1024;
};

}  // namespace l4k::emu
