#include "check/sectors.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace l4k::emu {

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
