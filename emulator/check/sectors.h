// What kernels did to global memory: which sectors were touched, and which stores are published.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace l4k::emu {

struct Inst;

// What happened to 32 bytes of global memory since the launch began. What a load looks at comes
// first, and shares a line of the host's cache.
struct Sector {
  uint16_t launch = 0, reader_launch = 0;     // low bits of the last writer's and reader's launch
  uint16_t counted_read = 0;                  // for this launch
  bool bulk_written = false;                  // by the copy engine, the last time
  bool plainly_written = false;               // by a store whose value the race check knows
  uint32_t reader = 0, reading = 0;           // CTA + 1 and epoch of the last plain reader
  uint32_t last_read = 0, reading_bytes = 0;  // bytes of this CTA, of this epoch
  uint32_t read = 0;                          // bytes read plainly by the launch reader_launch
  uint64_t read_time = 0;
  uint32_t unpublished = 0;                     // bytes in some CTA's store buffer
  uint32_t written = 0;                         // bytes written by the launch
  uint32_t owner = 0, writer = 0;               // CTA + 1 and epoch of the last writer
  uint32_t last_written = 0, writer_bytes = 0;  // bytes of this CTA, of this epoch
  uint64_t write_time = 0;
  uint32_t early_read = 0, nc_read = 0;      // bytes read before griddepcontrol.wait, through .nc
  uint16_t early_reader = 0, nc_reader = 0;  // by these launches
  const Inst *write_at = nullptr, *read_at = nullptr;  // of the last writer and reader
};

class SectorTable {
 public:
  SectorTable() { forget(); }
  Sector& at(uint64_t address) {
    uint64_t page = address >> 12;
    Cached& c = cache_[page % cache_.size()];
    if (page != c.page) lookup(page, &c);
    return (*c.sectors)[address >> 5 & 127];
  }
  void clear();
  // Takes everything from another table: combine(address, mine, theirs) where both have a page.
  template <typename F>
  void absorb(SectorTable& other, F&& combine) {
    for (auto& [number, theirs] : other.pages_) {
      auto& mine = pages_[number];
      if (!mine) std::swap(mine, theirs);
      else
        for (size_t i = 0; i < mine->size(); ++i)
          combine(number << 12 | i << 5, (*mine)[i], (*theirs)[i]);
    }
    other.clear();
  }

 private:
  using Page = std::array<Sector, 128>;
  struct Cached {
    uint64_t page;
    Page* sectors;
  };
  void lookup(uint64_t page, Cached* c);
  void forget() { cache_.fill({~uint64_t{0}, nullptr}); }
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  std::array<Cached, 64> cache_;
};

// Copies the bytes of a sector that are in `mask`.
void copy_sector(uint8_t* to, const uint8_t* from, uint32_t mask);

// Stores that a warp or a CTA has made and the rest of the grid cannot see yet, by sector.
class StoreBuffer {
 public:
  bool empty() const { return chunks_.empty(); }
  void write(uint64_t address, const void* data, uint32_t bytes);
  void read(uint64_t address, void* data, uint32_t bytes) const;  // lays buffered bytes over data
  bool holds(uint64_t address) const;                             // this byte
  void erase(uint64_t address, uint32_t bytes);
  void merge_into(StoreBuffer* other);
  template <typename Fn>
  void drain(Fn&& fn) {  // fn(address, data, mask), in the order of the first store to each sector
    for (const Chunk& c : chunks_) fn(c.sector << 5, c.data, c.mask);
    clear();
  }

 private:
  struct Chunk {
    uint64_t sector;
    uint32_t mask;
    uint8_t data[32];
  };
  Chunk& chunk(uint64_t sector);  // made if it is not there
  const Chunk* find(uint64_t sector) const;
  void clear();
  void grow();
  size_t slot(uint64_t sector) const {  // where it is, or where it would be
    size_t at = sector * 0x9e3779b97f4a7c15ull >> shift_;
    while (slots_[at] && chunks_[slots_[at] - 1].sector != sector)
      at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  std::vector<Chunk> chunks_;
  std::vector<uint32_t> slots_;  // open addressing: index of a chunk + 1; 0: free
  uint32_t shift_ = 64;
};

}  // namespace l4k::emu
