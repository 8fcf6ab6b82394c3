#include "check/stream_order.h"

#include <algorithm>

#include "check/report.h"

namespace l4k::emu {
namespace {

constexpr uint64_t kPage = 4096, kSector = 32;
constexpr uint32_t kAll = 0xffffffffu;

void race(const StreamOperation& earlier, const StreamOperation& later, Touching how, bool wrote,
          uint64_t address, int lane) {
  using Kind = StreamOperation::Kind;
  const std::string between = ", and no event or synchronisation orders the two";
  const char* verb = how == Touching::read    ? "reads "
                     : how == Touching::write ? "writes "
                                              : "updates ";
  if (later.kind == Kind::free)
    return complain_at(
        "use-after-free",
        later.name + " frees memory that " + earlier.name + " may still use" + between, lane,
        address);
  if (earlier.kind == Kind::free)
    return complain_at("use-after-free",
                       later.name + " " + verb + "memory that " + earlier.name + " frees" + between,
                       lane, address);
  if (earlier.kind == Kind::allocation)
    return complain_at(
        "use-before-allocation",
        later.name + " " + verb + "memory that " + earlier.name + " allocates" + between, lane,
        address);
  complain_at(
      "stream-race",
      later.name + " " + verb + "what " + earlier.name + (wrote ? " writes" : " reads") + between,
      lane, address);
}

}  // namespace

void join(LaneClock& into, const LaneClock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

bool covers(const LaneClock& later, const LaneClock& earlier) {
  for (size_t i = 0; i < earlier.size(); ++i)
    if (earlier[i] > (i < later.size() ? later[i] : 0)) return false;
  return true;
}

namespace {

// Reports what `op` conflicts with among these bytes.
template <typename Touches>
void check(const Touches& history, const StreamOperationPtr& op, uint32_t mask, Touching how,
           uint64_t address, int lane) {
  // Memory that is allocated is new, or a caching allocator hands a block out again, which is an
  // error only if its next owner touches what the last one may still use.
  if (op->kind == StreamOperation::Kind::allocation) return;
  for (const auto& t : history) {
    // Of one lane, those that overlap are a dependent launch and the one before it, which are
    // compared whether or not there are other streams ("dependency-race").
    if (t.op->lane == op->lane) continue;
    uint32_t with =
        t.written | (how != Touching::read ? t.read : 0) | (how != Touching::atomic ? t.atomic : 0);
    if ((with & mask) && !op->follows(*t.op))
      race(*t.op, *op, how, ((t.written | t.atomic) & mask) != 0, address, lane);
  }
}

// Adds what `op` touches. What an operation before it did to these bytes need not be kept: whatever
// has no order with that has none with `op` either.
template <typename Touches>
void add(Touches& history, const StreamOperationPtr& op, uint32_t mask, Touching how) {
  for (auto& t : history) {
    if (t.op == op || !op->follows(*t.op)) continue;
    if (how != Touching::atomic) t.read &= ~mask;
    if (how == Touching::write) t.written &= ~mask, t.atomic &= ~mask;
  }
  std::erase_if(history, [](const auto& t) { return !(t.read | t.written | t.atomic); });
  auto mine =
      std::find_if(history.begin(), history.end(), [&](const auto& t) { return t.op == op; });
  if (mine == history.end()) history.push_back({op}), mine = history.end() - 1;
  uint32_t& bits = how == Touching::read    ? mine->read
                   : how == Touching::write ? mine->written
                                            : mine->atomic;
  bits |= mask;
}

// Whether `op` has already touched these bytes in this way.
template <typename Touches>
bool known(const Touches& history, const StreamOperationPtr& op, uint32_t mask, Touching how) {
  for (const auto& t : history) {
    if (t.op != op) continue;
    uint32_t bits = how == Touching::read ? t.read : how == Touching::write ? t.written : t.atomic;
    return (bits & mask) == mask;
  }
  return false;
}

}  // namespace

StreamOrder::Page& StreamOrder::page(uint64_t number) {
  if (!last_ || last_number_ != number) last_ = &pages_[number], last_number_ = number;
  return *last_;
}

void StreamOrder::note(const StreamOperationPtr& op, uint64_t address, uint64_t bytes, Touching how,
                       int lane) {
  for (uint64_t at = address, end = address + bytes; at < end;) {
    Page& p = page(at / kPage);
    if (at % kPage == 0 && end - at >= kPage) {
      note_page(p, op, how, at, lane);
      at += kPage;
      continue;
    }
    uint64_t first = at % kSector, last = std::min(end - (at - first), kSector);
    auto mask = static_cast<uint32_t>(((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1));
    note_sector(p, op, mask, how, at, lane);
    at += last - first;
  }
}

void StreamOrder::note_page(Page& p, const StreamOperationPtr& op, Touching how, uint64_t address,
                            int lane) {
  if (known(p.whole, op, kAll, how)) return;
  check(p.whole, op, kAll, how, address, lane);
  for (uint64_t sector = 0; p.sectors && sector < p.sectors->size(); ++sector) {
    History& history = (*p.sectors)[sector];
    check(history, op, kAll, how, address + sector * kSector, lane);
    std::erase_if(history, [&](const Touch& t) {
      return op->follows(*t.op) &&
             (how == Touching::write || (how == Touching::read && !(t.written | t.atomic)));
    });
  }
  add(p.whole, op, kAll, how);
}

void StreamOrder::note_sector(Page& p, const StreamOperationPtr& op, uint32_t mask, Touching how,
                              uint64_t address, int lane) {
  if (!p.sectors) p.sectors = std::make_unique<std::array<History, 128>>();
  History& history = (*p.sectors)[address % kPage / kSector];
  if (known(history, op, mask, how)) return;
  check(p.whole, op, kAll, how, address, lane);
  check(history, op, mask, how, address, lane);
  add(history, op, mask, how);
}

}  // namespace l4k::emu
