// Device memory: what may be accessed, which sectors were touched, and which stores are published.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace l4k::emu {

struct Inst;

struct Range {
  uint64_t begin = 0, end = 0;
  bool owned = false;  // came from cudaMalloc
  bool read_only = false;
  uint32_t references = 1;
  uint32_t ended = 0;  // the first launch that may no longer touch it; 0: none
  const char* name = "";
  bool holds(uint64_t a, uint64_t n) const {
    return a >= begin && n <= end - begin && a - begin <= end - begin - n;
  }
};

// Memory that kernels may touch. Addresses are host pointers.
class GlobalMemory {
 public:
  ~GlobalMemory();
  void* allocate(uint64_t bytes);
  bool release(void* p);  // false: not an allocation
  void add_range(const void* p, uint64_t bytes, bool read_only = false);
  bool remove_range(const void* p, uint64_t bytes);
  // Launches from this one on may not touch what is registered of these bytes.
  void end_range(const void* p, uint64_t bytes, uint32_t launch, const char* name);
  // The range that holds [address, address + bytes), or null. It is looked for at `*hint` first,
  // where it is found is left there.
  const Range* find(uint64_t address, uint64_t bytes, size_t* hint) const;
  // "0x.. is 16 bytes past the end of an allocation of 4096 bytes".
  std::string describe(uint64_t address) const;
  uint64_t bytes_in_use() const { return in_use_; }

 private:
  std::vector<Range> ranges_;
  std::unordered_map<uint64_t, void*> blocks_;
  uint64_t in_use_ = 0;
};

// What happened to 32 bytes of global memory since the launch began.
struct Sector {
  uint32_t written = 0;                      // bytes written by the launch
  uint32_t unpublished = 0;                  // bytes in some CTA's store buffer
  uint32_t read = 0;                         // bytes read plainly by the launch reader_launch
  uint32_t last_written = 0, last_read = 0;  // bytes, of the last writer and the last plain reader
  uint32_t owner = 0, reader = 0;            // their CTAs, + 1
  uint64_t write_time = 0, read_time = 0;
  uint32_t writer = 0, reading = 0;              // epochs of the last warps that wrote and read
  uint32_t writer_bytes = 0, reading_bytes = 0;  // and their bytes
  const Inst *write_at = nullptr, *read_at = nullptr;  // and instructions
  uint16_t launch = 0, reader_launch = 0;              // low bits of the launches
  bool bulk_written = false;                           // by the copy engine, the last time
  uint32_t early_read = 0, nc_read = 0;      // bytes read before griddepcontrol.wait, through .nc
  uint16_t early_reader = 0, nc_reader = 0;  // by these launches
  uint16_t counted_read = 0;                 // for this launch
};

class SectorTable {
 public:
  Sector& at(uint64_t address) {
    uint64_t page = address >> 12;
    if (page != cached_page_) lookup(page);
    return (*cached_)[address >> 5 & 127];
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
  void lookup(uint64_t page);
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  uint64_t cached_page_ = ~uint64_t{0};
  Page* cached_ = nullptr;
};

// Stores that a warp or a CTA has made and the rest of the grid cannot see yet, by 16-byte chunk.
class StoreBuffer {
 public:
  struct Chunk {
    uint8_t data[16];
    uint16_t mask = 0;
  };
  bool empty() const { return chunks_.empty(); }
  void write(uint64_t address, const void* data, uint32_t bytes);
  void read(uint64_t address, void* data, uint32_t bytes) const;  // lays buffered bytes over data
  bool holds(uint64_t address) const;                             // this byte
  void erase(uint64_t address, uint32_t bytes);
  void merge_into(StoreBuffer* other);
  template <typename Fn>
  void drain(Fn&& fn) {  // fn(address, data, mask)
    for (auto& [a, c] : chunks_) fn(a << 4, c.data, c.mask);
    chunks_.clear();
  }

 private:
  std::unordered_map<uint64_t, Chunk> chunks_;
};

}  // namespace l4k::emu
