#include "check/global_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "check/report.h"

namespace l4k::emu {
namespace {
constexpr uint64_t kAlign = 512;                     // guard zone on both sides, and alignment
constexpr uint64_t kFillLimit = uint64_t{16} << 20;  // fresh memory up to this size is all NaN
constexpr size_t kQuarantineBlocks = 16384;
constexpr uint64_t kQuarantine = uint64_t{256} << 20;  // freed memory whose addresses stay unused
}  // namespace

GlobalMemory::~GlobalMemory() {
  for (auto& [a, p] : blocks_) std::free(p);
}

GlobalMemory::Ranges::iterator GlobalMemory::add(const Range& r) {
  ++generation_;
  longest_ = std::max(longest_, r.bytes());
  return ranges_.emplace(r.begin, r);
}

void* GlobalMemory::allocate(uint64_t bytes, Owner owner, unsigned flags) {
  if (bytes > (uint64_t{1} << 46)) return nullptr;
  uint64_t size = (bytes + kAlign - 1) / kAlign * kAlign + 2 * kAlign;
  void* block = std::aligned_alloc(kAlign, size);
  if (!block) return nullptr;
  uint64_t begin = reinterpret_cast<uint64_t>(block) + kAlign;
  if (bytes <= kFillLimit) std::memset(reinterpret_cast<void*>(begin), 0xff, bytes);
  blocks_[begin] = block;
  add({.begin = begin, .end = begin + bytes, .owner = owner, .flags = flags});
  in_use_ += bytes;
  return reinterpret_cast<void*>(begin);
}

void GlobalMemory::release(void* p, uint32_t launch, const char* name) {
  auto begin = reinterpret_cast<uint64_t>(p);
  auto [first, last] = ranges_.equal_range(begin);
  for (; first != last; ++first) {
    Range& r = first->second;
    if (!r.allocated() || r.ended) continue;
    r.ended = launch, r.name = name;
    ++generation_;
    in_use_ -= r.bytes();
    if (r.owner == Owner::graph) return;  // keeps its addresses
    quarantined_ += r.bytes();
    quarantine_.push_back(first);
    evict();
    return;
  }
}

void GlobalMemory::revive(void* p) {
  auto [first, last] = ranges_.equal_range(reinterpret_cast<uint64_t>(p));
  for (; first != last; ++first) {
    Range& r = first->second;
    if (r.owner != Owner::graph || !r.ended) continue;
    r.ended = 0;
    ++generation_;
    in_use_ += r.bytes();
  }
}

// The oldest blocks that were freed go back to the host; the newest stays in any case.
void GlobalMemory::evict() {
  while (quarantine_.size() > 1 &&
         (quarantined_ > kQuarantine || quarantine_.size() > kQuarantineBlocks)) {
    auto freed = quarantine_.front();
    quarantine_.pop_front();
    quarantined_ -= freed->second.bytes();
    auto block = blocks_.find(freed->first);
    std::free(block->second);
    blocks_.erase(block);
    ranges_.erase(freed);
    ++generation_;
  }
}

void GlobalMemory::add_range(const void* p, uint64_t bytes, Owner owner, unsigned flags) {
  auto begin = reinterpret_cast<uint64_t>(p);
  auto [first, last] = ranges_.equal_range(begin);
  for (; first != last; ++first) {
    Range& r = first->second;
    if (r.end != begin + bytes || r.owner != owner || r.ended) continue;
    ++r.references;
    return;
  }
  add({.begin = begin, .end = begin + bytes, .owner = owner, .flags = flags});
}

bool GlobalMemory::remove_range(const void* p, uint64_t bytes) {
  auto begin = reinterpret_cast<uint64_t>(p);
  auto [first, last] = ranges_.equal_range(begin);
  for (; first != last; ++first) {
    Range& r = first->second;
    if (r.end != begin + bytes || r.allocated()) continue;
    ++generation_;
    if (--r.references == 0) ranges_.erase(first);
    return true;
  }
  return false;
}

void GlobalMemory::end_range(const void* p, uint64_t bytes, uint32_t launch, const char* name) {
  const Range all{reinterpret_cast<uint64_t>(p), reinterpret_cast<uint64_t>(p) + bytes};
  for (auto at = ranges_.lower_bound(all.begin); at != ranges_.end() && at->first <= all.end;
       ++at) {
    Range& r = at->second;
    if (r.owner == Owner::registered && !r.ended && all.holds(r.begin, r.bytes()))
      r.ended = launch, r.name = name;
  }
  ++generation_;
}

const Range* GlobalMemory::find(uint64_t address, uint64_t bytes) const {
  const Range* found = nullptr;
  for (auto at = ranges_.upper_bound(address); at != ranges_.begin();) {
    --at;
    if (address - at->first > longest_) break;
    if (!at->second.holds(address, bytes)) continue;
    if (!found || found->ended) found = &at->second;
    if (!found->ended) break;
  }
  return found;
}

const Range* GlobalMemory::find_live(uint64_t address, uint64_t bytes) const {
  const Range* r = find(address, bytes);
  return r && !r->ended ? r : nullptr;
}

const Range* GlobalMemory::begins(const void* p) const {
  const Range* found = nullptr;
  auto [first, last] = ranges_.equal_range(reinterpret_cast<uint64_t>(p));
  for (; first != last; ++first)
    if (!found || found->ended) found = &first->second;
  return found;
}

std::string GlobalMemory::describe(uint64_t address) const {
  const Range* best = nullptr;
  uint64_t distance = ~uint64_t{0};
  for (const auto& [begin, r] : ranges_) {
    if (r.ended) continue;
    uint64_t d = address < r.begin ? r.begin - address : address >= r.end ? address - r.end + 1 : 0;
    if (d < distance) distance = d, best = &r;
  }
  if (!best || distance > (uint64_t{1} << 32)) return hex(address) + " is in no live allocation";
  std::string size = "an allocation of " + std::to_string(best->end - best->begin) + " bytes at " +
                     hex(best->begin);
  if (address < best->begin)
    return hex(address) + " is " + std::to_string(distance) + " bytes before " + size;
  if (address >= best->end)
    return hex(address) + " is " + std::to_string(distance - 1) + " bytes past the end of " + size;
  return hex(address) + " lies in " + size + " but the access runs past its end";
}

const Range* RangeCache::search(uint64_t address, uint64_t bytes) {
  if (generation_ != memory_.generation()) recent_.fill(nullptr);
  generation_ = memory_.generation();
  const Range* r = memory_.find(address, bytes);
  if (r) recent_[next_++ % recent_.size()] = r;
  return r;
}

}  // namespace l4k::emu
