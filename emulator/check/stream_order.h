// Which operations of streams (launches, copies, allocations) come before which, and what each of
// them did to memory: two that touch the same bytes need an order between them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace l4k::emu {

// By lane: how many of its operations are known to have ended. Every stream is a lane, and so is
// every branch of a graph.
using LaneClock = std::vector<uint64_t>;
void join(LaneClock& into, const LaneClock& from);
bool covers(const LaneClock& later, const LaneClock& earlier);

struct StreamOperation {
  enum class Kind : uint8_t { use, allocation, free };
  uint32_t lane = 0;
  uint64_t tick = 0;  // which of its lane
  LaneClock after;    // what has ended when it begins, itself included
  std::string name;   // "kernel f on stream 3", for reports
  Kind kind = Kind::use;
  // This operation comes after the other one, or is the same.
  bool follows(const StreamOperation& other) const {
    return other.lane < after.size() && after[other.lane] >= other.tick;
  }
};
using StreamOperationPtr = std::shared_ptr<const StreamOperation>;

// Atomics do not race with each other.
enum class Touching : uint8_t { read, write, atomic };

class StreamOrder {
 public:
  uint32_t new_lane() { return lanes_++; }
  // Operations are followed from here on: a program with the default stream alone needs no order.
  void follow() { following_ = true; }
  bool following() const { return following_; }
  // The operation touches these bytes. Throws a Fault when another did that is not ordered with it.
  void note(const StreamOperationPtr& op, uint64_t address, uint64_t bytes, Touching how, int lane);
  // Everything before has ended, and whatever comes is after it.
  void forget() { pages_.clear(), last_ = nullptr; }

 private:
  // Bytes of a sector that one operation touched; of a whole page, all bits.
  struct Touch {
    StreamOperationPtr op;
    uint32_t read = 0, written = 0, atomic = 0;
  };
  using History = std::vector<Touch>;
  struct Page {
    History whole;  // touched all of it
    std::unique_ptr<std::array<History, 128>> sectors;
  };
  Page& page(uint64_t number);
  void note_page(Page& p, const StreamOperationPtr& op, Touching how, uint64_t address, int lane);
  void note_sector(Page& p, const StreamOperationPtr& op, uint32_t mask, Touching how,
                   uint64_t address, int lane);
  std::unordered_map<uint64_t, Page> pages_;
  uint64_t last_number_ = 0;
  Page* last_ = nullptr;
  uint32_t lanes_ = 0;
  bool following_ = false;
};

}  // namespace l4k::emu
