// Device memory: what may be accessed, which sectors were touched, and which stores are published.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace l4k::emu {

// Who gives a range its end.
enum class Owner : uint8_t {
  registered,
  device,
  managed,
  host,
  pool,
  graph,
  host_registered,
  variable,
  parameters
};

struct Range {
  uint64_t begin = 0, end = 0;
  Owner owner = Owner::registered;
  uint32_t references = 1;
  uint32_t ended = 0;  // the first launch that may no longer touch it; 0: none
  const char* name = "";
  unsigned flags = 0;  // of the call that made it
  bool read_only() const { return owner == Owner::parameters; }
  // Its memory is ours, with guard zones on both sides.
  bool allocated() const {
    return owner != Owner::registered && owner != Owner::host_registered &&
           owner != Owner::parameters;
  }
  uint64_t bytes() const { return end - begin; }
  bool holds(uint64_t a, uint64_t n) const {
    return a >= begin && n <= end - begin && a - begin <= end - begin - n;
  }
};

// Memory that kernels may touch. Addresses are host pointers. What has been freed stays known, and
// its addresses unused, until much more has been freed after it.
class GlobalMemory {
 public:
  ~GlobalMemory();
  void* allocate(uint64_t bytes, Owner owner = Owner::device, unsigned flags = 0);
  // Frees what `allocate` returned: launches from this one on may not touch it.
  void release(void* p, uint32_t launch, const char* name);
  // Memory of a graph that has been freed is there again: the graph has been launched.
  void revive(void* p);
  void add_range(const void* p, uint64_t bytes, Owner owner = Owner::registered,
                 unsigned flags = 0);
  bool remove_range(const void* p, uint64_t bytes);
  // Launches from this one on may not touch what is registered of these bytes.
  void end_range(const void* p, uint64_t bytes, uint32_t launch, const char* name);
  // The range that holds [address, address + bytes), a live one if there is one, or null.
  const Range* find(uint64_t address, uint64_t bytes) const;
  // The same, but not one that has ended.
  const Range* find_live(uint64_t address, uint64_t bytes) const;
  // The allocation or registration that begins here, live or not, or null.
  const Range* begins(const void* p) const;
  // "0x.. is 16 bytes past the end of an allocation of 4096 bytes".
  std::string describe(uint64_t address) const;
  uint64_t bytes_in_use() const { return in_use_; }
  template <typename F>
  void for_each_live(F&& f) const {
    for (const auto& [begin, r] : ranges_)
      if (!r.ended) f(r);
  }

 private:
  using Ranges = std::multimap<uint64_t, Range>;
  Ranges::iterator add(const Range& r);
  void evict();
  Ranges ranges_;         // by begin
  uint64_t longest_ = 0;  // no range is longer
  std::unordered_map<uint64_t, void*> blocks_;
  std::deque<Ranges::iterator> quarantine_;  // freed, oldest first
  uint64_t in_use_ = 0, quarantined_ = 0;
  mutable const Range* last_ = nullptr;
};

// What happened to 32 bytes of global memory since the launch began.
struct Sector {
  uint32_t written = 0;                      // bytes written by the launch
  uint32_t unpublished = 0;                  // bytes in some CTA's store buffer
  uint32_t last_written = 0, last_read = 0;  // bytes, of the last writer and the last plain reader
  uint32_t owner = 0, reader = 0;            // their CTAs, + 1
  uint64_t write_time = 0, read_time = 0;
  uint32_t writer = 0, reading = 0;              // epochs of the last warps that wrote and read
  uint32_t writer_bytes = 0, reading_bytes = 0;  // and their bytes
  uint16_t launch = 0, reader_launch = 0;        // low bits of the launches
  bool bulk_written = false;                     // by the copy engine, the last time
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
