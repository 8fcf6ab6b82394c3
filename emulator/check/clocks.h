// Order between actors: vector clocks (FastTrack). An actor is a warp of the cluster or a CTA's
// asynchronous engine, an epoch is (actor, clock), and an access is ordered before another if the
// other's actor has seen its epoch through a barrier. Every warp also carries the clock up to which
// writes are visible to the asynchronous proxy: a proxy fence sets it, barriers pass it on.
#pragma once

#include <cstddef>
#include <cstdint>
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
  Clock seen;           // epochs ordered before this actor's next access
  Clock proxied;        // the same, and visible to the asynchronous proxy
  uint32_t synced = 1;  // its clock when something last ordered the lanes of the warp
  uint32_t epoch() const { return make_epoch(id, seen[id]); }
  // Takes on what others had seen when they released; its own clock stays.
  void acquire(const Clock& others_seen, const Clock& others_proxied) {
    uint32_t own = seen[id];
    join(seen, others_seen);
    join(proxied, others_proxied);
    seen[id] = own;
  }
  void tick();  // begins a new epoch: after every release
  // An access of this warp that nothing has ordered before those of its other lanes.
  bool unsynced(uint32_t epoch) const {
    return epoch_actor(epoch) == id && epoch_clock(epoch) >= synced;
  }
};

}  // namespace l4k::emu
