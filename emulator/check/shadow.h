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

// Of a word or, where its bytes may have different users, of a half or a byte.
struct Cell {
  uint32_t writer = 0;           // epoch of the last write, 0: none; of a split word: its bytes
  uint32_t reader = 0;           // epoch of the last plain read, or kReadSet | index of a set
  uint32_t volatile_reader = 0;  // epoch of the last volatile read
  uint8_t writer_lane, reader_lane, volatile_lane;
  Writer kind : 4 = Writer::generic;
  bool defined : 1 = false;
  uint8_t step : 3 = 4;  // of a word: the bytes that each of its cells stands for
};
static_assert(sizeof(Cell) == 16);

class Shadow {
 public:
  static constexpr uint8_t kLanes = 32;  // as a lane: several, or none

  Shadow(uint32_t bytes, uint32_t actors)
      : cells_(bytes / 4,
               Cell{.writer_lane = kLanes, .reader_lane = kLanes, .volatile_lane = kLanes}),
        actors_(actors) {}
  // Calls f(cell, address, bytes) for the cells of an access: words, and halves or bytes of those
  // words that have been accessed in parts.
  template <typename F>
  void visit(uint32_t address, uint32_t bytes, F&& f) {
    if ((address | bytes) & 3) return visit_parts(address, bytes, f);
    for (uint32_t end = address + bytes; address < end; address += 4) {
      Cell& c = cells_[address / 4];
      if (c.step != 4) visit_parts(address, 4, f);
      else f(c, address, 4u);
    }
  }
  Cell& word(uint32_t address) { return cells_[address / 4]; }
  bool defined(uint32_t address) const {
    const Cell& c = cells_[address / 4];
    return c.step == 4 ? c.defined : parts_[c.writer][address & (4u - c.step)].defined;
  }
  // The commonest access: a whole word that nothing in flight or unordered has touched. False: not so,
  // and nothing was noted.
  bool read_quietly(Cell& c, uint32_t mine, const Clock& seen, uint8_t lane) {
    if (c.step != 4 || !c.defined) return false;
    if (c.writer == mine ? c.writer_lane != lane && c.kind <= Writer::cp_async
                         : !ordered(c.writer, seen))
      return false;
    note_read(c, mine, seen, lane);
    return true;
  }
  bool write_quietly(Cell& c, uint32_t mine, const Clock& seen, uint8_t lane) {
    if (c.step != 4) return false;
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
  template <typename F>
  void visit_parts(uint32_t address, uint32_t bytes, F& f) {
    for (uint32_t end = address + bytes; address < end;) {
      Cell& c = cells_[address / 4];
      uint32_t next = std::min(end, (address & ~3u) + 4), step = (address | next) & 1 ? 1 : 2;
      bool whole = next - address == 4;
      if (step < c.step) split(c, step);
      for (step = c.step; address < next; address += step)
        f(parts_[c.writer][address & 3], address, step);
      if (whole) unite(c);
    }
  }
  void copy(const Cell& from, Cell* to) {
    *to = from;
    if (from.reader >= kReadSet) to->reader = copy_set(from.reader);
  }
  void split(Cell& c, uint32_t step);
  void unite(Cell& c);  // if its parts have the same users
  uint32_t* set(uint32_t index) { return read_sets_.data() + size_t{index} * actors_; }
  void add_to_set(Cell& c, uint32_t reader);
  uint32_t new_set();
  uint32_t copy_set(uint32_t reader);

  std::vector<Cell> cells_;
  std::vector<Parts> parts_;
  std::vector<uint32_t> read_sets_;  // by set, the last clock at which each actor has read
  std::vector<uint32_t> free_parts_, free_sets_;
  uint32_t actors_;
};

}  // namespace l4k::emu
