// Device memory: what may be accessed.
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
  // Changes whenever `find` may return something else than before.
  uint64_t generation() const { return generation_; }
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
  uint64_t in_use_ = 0, quarantined_ = 0, generation_ = 1;
};

// Finds the range of an access again and again: remembers the last few.
class RangeCache {
 public:
  explicit RangeCache(const GlobalMemory& memory) : memory_(memory) {}
  const Range* find(uint64_t address, uint64_t bytes) {
    if (generation_ == memory_.generation())
      for (const Range* r : recent_)
        if (r && r->holds(address, bytes)) return r;
    return search(address, bytes);
  }

 private:
  const Range* search(uint64_t address, uint64_t bytes);
  const GlobalMemory& memory_;
  uint64_t generation_ = 0;
  std::array<const Range*, 4> recent_ = {};
  uint32_t next_ = 0;
};

}  // namespace l4k::emu
