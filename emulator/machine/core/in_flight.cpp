// Asynchronous operations land: when nothing else can run, when the mode says so, or when waited for.
#include "machine/core/in_flight.h"

#include <bit>
#include <utility>

#include "machine/core/machine.h"

namespace l4k::emu {
void Machine::submit(BulkOp op) {
  bulk_.push_back(std::move(op));
  if (settings.mode == Mode::early) land(bulk_.size() - 1);
}

void Machine::land(size_t index) {
  BulkOp& op = bulk_[index];
  ++progress;
  Position before = std::exchange(at_, {op.warp, op.inst});
  try {
    if (!op.has_read && op.read) op.read();
    op.has_read = true;
    if (!op.landed) op.land();
    op.landed = true;
  } catch (const Fault& f) {
    if (!goes_on_without(f)) return record(f, {op.warp, op.inst});
    op.has_read = op.landed = true;
  }
  at_ = before;
  if (op.group == ~0u || op.released) bulk_.erase(bulk_.begin() + static_cast<ptrdiff_t>(index));
}

// Any copy may be next: they are not ordered among each other.
bool Machine::land_one() {
  std::vector<size_t> candidates;
  for (size_t i = 0; i < bulk_.size(); ++i)
    if (!bulk_[i].landed) candidates.push_back(i);
  std::vector<Warp*> copying;
  for_each_warp([&](Warp& w) {
    if (!w.copies.empty()) copying.push_back(&w);
  });
  size_t n = candidates.size() + copying.size();
  if (!n) return false;
  size_t pick = random() % n;
  if (pick < candidates.size()) land(candidates[pick]);
  else land_copies_of(*copying[pick - candidates.size()]);
  return true;
}

// The oldest cp.async of the warp.
void Machine::land_copies_of(Warp& w) {
  const CpAsync& front = w.copies.front();
  const Inst* in = front.inst;
  uint32_t lanes = front.mask, up_to = front.sequence;
  if (!w.deferred_arrives.empty()) {
    // Thread by thread: an mbarrier that counts too few of them completes too early.
    uint32_t skip = static_cast<uint32_t>(random() % static_cast<uint32_t>(std::popcount(lanes)));
    while (skip--) lanes &= lanes - 1;
    lanes &= ~lanes + 1;
    for (const auto& a : w.deferred_arrives)
      if (lanes >> a.lane & 1) {
        up_to = std::max(up_to, a.after);
        break;
      }
  }
  Position before = std::exchange(at_, {&w, in});
  try {
    front.land(w, up_to, lanes);
  } catch (const Fault& f) {
    if (!goes_on_without(f)) return record(f, {&w, in});
  }
  at_ = before;
}

void Machine::complete_bulk_groups(Warp& w, int lane, uint32_t allowed, bool read_only) {
  uint32_t open = w.bulk_group[lane];
  for (size_t i = bulk_.size(); i-- > 0;) {
    BulkOp& op = bulk_[i];
    if (op.warp != &w || op.lane != lane || op.group == ~0u || op.group + allowed >= open) continue;
    if (!op.has_read && op.read) op.read();
    op.has_read = true;
    if (!op.released) op.release();
    op.released = true;
    if (!read_only || op.landed) land(i);
  }
  ++progress;
}

}  // namespace l4k::emu
