#include "check/global_memory.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "check/report.h"

namespace l4k::emu {
namespace {
constexpr uint64_t kAlign = 512;                     // guard zone on both sides, and alignment
constexpr uint64_t kFillLimit = uint64_t{16} << 20;  // fresh memory up to this size is all NaN
}  // namespace

GlobalMemory::~GlobalMemory() {
  for (auto& [a, p] : blocks_) std::free(p);
}

void* GlobalMemory::allocate(uint64_t bytes) {
  uint64_t size = (bytes + kAlign - 1) / kAlign * kAlign + 2 * kAlign;
  if (bytes > (uint64_t{1} << 46)) return nullptr;
  void* block = std::aligned_alloc(kAlign, size);
  if (!block) return nullptr;
  uint64_t begin = reinterpret_cast<uint64_t>(block) + kAlign;
  if (bytes <= kFillLimit) std::memset(reinterpret_cast<void*>(begin), 0xff, bytes);
  blocks_[begin] = block;
  ranges_.push_back({begin, begin + bytes, true, false, 1});
  ++generation_;
  in_use_ += bytes;
  return reinterpret_cast<void*>(begin);
}

bool GlobalMemory::release(void* p) {
  auto it = blocks_.find(reinterpret_cast<uint64_t>(p));
  if (it == blocks_.end()) return false;
  std::erase_if(ranges_, [&](const Range& r) {
    bool mine = r.owned && r.begin == it->first;
    if (mine) in_use_ -= r.end - r.begin;
    return mine;
  });
  std::free(it->second);
  blocks_.erase(it);
  ++generation_;
  return true;
}

void GlobalMemory::add_range(const void* p, uint64_t bytes, bool read_only) {
  auto begin = reinterpret_cast<uint64_t>(p);
  for (auto& r : ranges_) {
    if (r.begin == begin && r.end == begin + bytes && !r.owned) {
      ++r.references;
      return;
    }
  }
  ranges_.push_back({begin, begin + bytes, false, read_only, 1});
  ++generation_;
}

bool GlobalMemory::remove_range(const void* p, uint64_t bytes) {
  auto begin = reinterpret_cast<uint64_t>(p);
  for (size_t i = 0; i < ranges_.size(); ++i) {
    Range& r = ranges_[i];
    if (r.begin != begin || r.end != begin + bytes || r.owned) continue;
    if (--r.references == 0) ranges_.erase(ranges_.begin() + static_cast<ptrdiff_t>(i));
    ++generation_;
    return true;
  }
  return false;
}

void GlobalMemory::end_range(const void* p, uint64_t bytes, uint32_t launch, const char* name) {
  const Range all{reinterpret_cast<uint64_t>(p), reinterpret_cast<uint64_t>(p) + bytes};
  for (auto& r : ranges_)
    if (!r.owned && !r.ended && all.holds(r.begin, r.end - r.begin))
      r.ended = launch, r.name = name;
}

const Range* GlobalMemory::find(uint64_t address, uint64_t bytes) const {
  for (const Range& r : ranges_)
    if (r.holds(address, bytes)) return &r;
  return nullptr;
}

std::string GlobalMemory::describe(uint64_t address) const {
  const Range* best = nullptr;
  uint64_t distance = ~uint64_t{0};
  for (const auto& r : ranges_) {
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

void SectorTable::lookup(uint64_t page, Cached* c) {
  auto& slot = pages_[page];
  if (!slot) slot = std::make_unique<Page>();
  *c = {page, slot.get()};
}

void SectorTable::clear() {
  pages_.clear();
  forget();
}

namespace {

// Calls f(sector, offset in it, bytes, bytes done before) for each part of an access.
template <typename F>
void by_sector(uint64_t address, uint32_t bytes, F&& f) {
  for (uint32_t done = 0; done < bytes;) {
    uint32_t offset = (address + done) & 31, n = std::min(32 - offset, bytes - done);
    f((address + done) >> 5, offset, n, done);
    done += n;
  }
}

uint32_t byte_mask(uint32_t offset, uint32_t n) {
  return static_cast<uint32_t>(((uint64_t{1} << n) - 1) << offset);
}

}  // namespace

void copy_sector(uint8_t* to, const uint8_t* from, uint32_t mask) {
  if (mask == ~0u) std::memcpy(to, from, 32);
  else
    for (; mask; mask &= mask - 1) to[std::countr_zero(mask)] = from[std::countr_zero(mask)];
}

void StoreBuffer::grow() {
  size_t size = std::max<size_t>(16, slots_.size() * 2);
  slots_.assign(size, 0);
  shift_ = 64 - static_cast<uint32_t>(std::countr_zero(size));
  for (size_t i = 0; i < chunks_.size(); ++i)
    slots_[slot(chunks_[i].sector)] = static_cast<uint32_t>(i + 1);
}

void StoreBuffer::clear() {
  chunks_.clear();
  // A buffer that was large once must not cost its size at every release.
  if (slots_.size() > 64) slots_.clear();
  else std::fill(slots_.begin(), slots_.end(), 0);
}

StoreBuffer::Chunk& StoreBuffer::chunk(uint64_t sector) {
  if (chunks_.size() * 2 >= slots_.size()) grow();
  uint32_t& index = slots_[slot(sector)];
  if (!index) {
    chunks_.push_back({sector, 0, {}});
    index = static_cast<uint32_t>(chunks_.size());
  }
  return chunks_[index - 1];
}

const StoreBuffer::Chunk* StoreBuffer::find(uint64_t sector) const {
  if (chunks_.empty()) return nullptr;
  uint32_t index = slots_[slot(sector)];
  return index ? &chunks_[index - 1] : nullptr;
}

void StoreBuffer::write(uint64_t address, const void* data, uint32_t bytes) {
  by_sector(address, bytes, [&](uint64_t sector, uint32_t offset, uint32_t n, uint32_t done) {
    Chunk& c = chunk(sector);
    std::memcpy(c.data + offset, static_cast<const uint8_t*>(data) + done, n);
    c.mask |= byte_mask(offset, n);
  });
}

void StoreBuffer::read(uint64_t address, void* data, uint32_t bytes) const {
  by_sector(address, bytes, [&](uint64_t sector, uint32_t offset, uint32_t n, uint32_t done) {
    if (const Chunk* c = find(sector))
      copy_sector(static_cast<uint8_t*>(data) + done, c->data + offset,
                  (c->mask & byte_mask(offset, n)) >> offset);
  });
}

bool StoreBuffer::holds(uint64_t address) const {
  const Chunk* c = find(address >> 5);
  return c && (c->mask >> (address & 31) & 1);
}

void StoreBuffer::erase(uint64_t address, uint32_t bytes) {
  by_sector(address, bytes, [&](uint64_t sector, uint32_t offset, uint32_t n, uint32_t) {
    if (find(sector)) chunk(sector).mask &= ~byte_mask(offset, n);
  });
}

void StoreBuffer::merge_into(StoreBuffer* other) {
  drain([&](uint64_t address, const uint8_t* data, uint32_t mask) {
    Chunk& c = other->chunk(address >> 5);
    copy_sector(c.data, data, mask);
    c.mask |= mask;
  });
}

}  // namespace l4k::emu
