#include "check/global_memory.h"

#include <algorithm>
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
}

bool GlobalMemory::remove_range(const void* p, uint64_t bytes) {
  auto begin = reinterpret_cast<uint64_t>(p);
  for (size_t i = 0; i < ranges_.size(); ++i) {
    Range& r = ranges_[i];
    if (r.begin != begin || r.end != begin + bytes || r.owned) continue;
    if (--r.references == 0) ranges_.erase(ranges_.begin() + static_cast<ptrdiff_t>(i));
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

const Range* GlobalMemory::find(uint64_t address, uint64_t bytes, size_t* hint) const {
  if (*hint < ranges_.size() && ranges_[*hint].holds(address, bytes)) return &ranges_[*hint];
  for (size_t i = 0; i < ranges_.size(); ++i) {
    if (ranges_[i].holds(address, bytes)) {
      *hint = i;
      return &ranges_[i];
    }
  }
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

void SectorTable::lookup(uint64_t page) {
  auto& slot = pages_[page];
  if (!slot) slot = std::make_unique<Page>();
  cached_page_ = page;
  cached_ = slot.get();
}

void SectorTable::clear() {
  pages_.clear();
  cached_page_ = ~uint64_t{0};
  cached_ = nullptr;
}

void StoreBuffer::write(uint64_t address, const void* data, uint32_t bytes) {
  const auto* p = static_cast<const uint8_t*>(data);
  while (bytes) {
    uint32_t offset = address & 15, n = std::min<uint32_t>(16 - offset, bytes);
    Chunk& c = chunks_[address >> 4];
    std::memcpy(c.data + offset, p, n);
    c.mask = static_cast<uint16_t>(c.mask | (((1u << n) - 1) << offset));
    address += n, p += n, bytes -= n;
  }
}

void StoreBuffer::read(uint64_t address, void* data, uint32_t bytes) const {
  auto* p = static_cast<uint8_t*>(data);
  while (bytes) {
    uint32_t offset = address & 15, n = std::min<uint32_t>(16 - offset, bytes);
    if (auto it = chunks_.find(address >> 4); it != chunks_.end())
      for (uint32_t i = 0; i < n; ++i)
        if (it->second.mask >> (offset + i) & 1) p[i] = it->second.data[offset + i];
    address += n, p += n, bytes -= n;
  }
}

bool StoreBuffer::holds(uint64_t address) const {
  auto it = chunks_.find(address >> 4);
  return it != chunks_.end() && (it->second.mask >> (address & 15) & 1);
}

void StoreBuffer::erase(uint64_t address, uint32_t bytes) {
  while (bytes) {
    uint32_t offset = address & 15, n = std::min<uint32_t>(16 - offset, bytes);
    if (auto it = chunks_.find(address >> 4); it != chunks_.end())
      it->second.mask = static_cast<uint16_t>(it->second.mask & ~(((1u << n) - 1) << offset));
    address += n, bytes -= n;
  }
}

void StoreBuffer::merge_into(StoreBuffer* other) {
  drain([&](uint64_t a, const uint8_t* data, uint16_t mask) {
    for (uint32_t i = 0; i < 16; ++i)
      if (mask >> i & 1) other->write(a + i, data + i, 1);
  });
}

}  // namespace l4k::emu
