// Who wrote and read each byte of shared memory last.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "check/clocks.h"

namespace l4k::emu {

// Those from `atomic` on may race with each other.
enum class Writer : uint8_t { generic, cp_async, async_proxy, atomic, volatile_ };

// Of a word or, where its bytes have different users, of a byte.
struct Cell {
  uint32_t writer = 0;           // epoch of the last write, 0: none; of a split word: its bytes
  uint32_t reader = 0;           // epoch of the last plain read, or kReadSet | index of a set
  uint32_t volatile_reader = 0;  // epoch of the last volatile read
  uint8_t writer_lane, reader_lane, volatile_lane;
  Writer kind : 4 = Writer::generic;
  bool defined : 1 = false;
  bool split : 1 = false;
};
static_assert(sizeof(Cell) == 16);

class Shadow {
 public:
  static constexpr uint8_t kLanes = 32;  // as a lane: several, or none

  Shadow(uint32_t bytes, uint32_t actors)
      : cells_(bytes / 4,
               Cell{.writer_lane = kLanes, .reader_lane = kLanes, .volatile_lane = kLanes}),
        actors_(actors) {}
  // Calls f(cell, address, bytes) for the cells of an access: words, and bytes of those words that
  // have been accessed in parts.
  template <typename F>
  void visit(uint32_t address, uint32_t bytes, F&& f) {
    uint32_t end = address + bytes;
    for (uint32_t w = address / 4; w * 4 < end; ++w) {
      Cell& c = cells_[w];
      uint32_t low = std::max(address, w * 4), high = std::min(end, w * 4 + 4);
      if (high - low == 4 && !c.split) {
        f(c, low, 4u);
        continue;
      }
      if (!c.split) split(c);
      for (uint32_t at = low; at < high; ++at) f(parts_[c.writer][at & 3], at, 1u);
      if (high - low == 4) unite(c);
    }
  }
  Cell& word(uint32_t address) { return cells_[address / 4]; }
  bool defined(uint32_t address) const {
    const Cell& c = cells_[address / 4];
    return c.split ? parts_[c.writer][address & 3].defined : c.defined;
  }
  // The commonest access: a whole word that nothing in flight or unordered has touched. False: not so,
  // and nothing was noted.
  bool read_quietly(Cell& c, uint32_t mine, const Clock& seen, uint8_t lane) {
    if (c.split || !c.defined) return false;
    if (c.writer == mine ? c.writer_lane != lane && c.kind <= Writer::cp_async
                         : !ordered(c.writer, seen))
      return false;
    note_read(c, mine, seen, lane);
    return true;
  }
  bool write_quietly(Cell& c, uint32_t mine, const Clock& seen, uint8_t lane) {
    if (c.split) return false;
    if (c.writer == mine ? c.writer_lane != lane : !ordered(c.writer, seen)) return false;
    if (c.reader == mine ? c.reader_lane != lane : unordered_read(c, seen) != 0) return false;
    c.writer = mine, c.writer_lane = lane;
    forget_reads(c);
    c.kind = Writer::generic, c.defined = true;
    return true;
  }
  // Reads. Those of several actors with no order among them are kept as a set.
  void note_read(Cell& c, uint32_t mine, const Clock& seen, uint8_t lane) {
    if (c.reader == mine) {
      if (c.reader_lane != lane) c.reader_lane = kLanes;
      return;
    }
    c.reader_lane = lane;
    if (c.reader < kReadSet && ordered(c.reader, seen)) c.reader = mine;
    else if (c.reader < kReadSet) add_to_set(c, mine);
    else set(c.reader - kReadSet)[epoch_actor(mine)] = epoch_clock(mine);
  }
  void forget_reads(Cell& c) {
    if (c.reader >= kReadSet) free_sets_.push_back(c.reader - kReadSet);
    c.reader = 0;
  }
  // The epoch of a read that `seen` does not know of; 0: there is none.
  uint32_t unordered_read(const Cell& c, const Clock& seen) const;

 private:
  static constexpr uint32_t kReadSet = make_epoch(1023, 0);
  using Parts = std::array<Cell, 4>;
  void split(Cell& c);
  void unite(Cell& c);  // if its bytes have the same users
  uint32_t* set(uint32_t index) { return read_sets_.data() + size_t{index} * actors_; }
  void add_to_set(Cell& c, uint32_t reader);
  uint32_t new_set();

  std::vector<Cell> cells_;
  std::vector<Parts> parts_;
  std::vector<uint32_t> read_sets_;  // by set, the last clock at which each actor has read
  std::vector<uint32_t> free_parts_, free_sets_;
  uint32_t actors_;
};

}  // namespace l4k::emu
