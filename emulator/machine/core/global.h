// Global memory on behalf of a warp: bounds, traffic, and races between warps, CTAs and kernels.
#pragma once

#include <array>

#include "machine/core/machine.h"

namespace l4k::emu {

// copy_read: by a copy, which does not look into store buffers. buffered_write: a plain store where
// such stores stay invisible to other CTAs for a while.
enum class Access : uint8_t {
  copy_read,
  read,
  nc_read,
  coherent_read,
  write,
  buffered_write,
  bulk_write,
  atomic
};

// Host pointer to `bytes` of global memory; faults outside.
uint8_t* global_pointer(Warp& w, int lane, uint64_t address, uint64_t bytes, bool write);
// Bookkeeping of an access by one lane, or by the copy engine for it. Whether store buffers hold newer
// bytes than memory.
bool note_global(Warp& w, uint64_t address, uint64_t bytes, Access how, int lane);
// Faults if another CTA holds one of these bytes in its store buffer.
void check_published(Warp& w, uint64_t address, uint64_t bytes, const char* what, int lane);

// The same by several lanes of a warp, `bytes` at each one's address.
struct LaneAccess {
  const uint64_t* address;  // by lane
  uint32_t lanes, bytes;
  uint64_t low, high;  // high: past the last byte
  bool dense;          // every byte between is accessed: one run, or one place
  LaneAccess(const uint64_t* address, uint32_t lanes, uint32_t bytes);
};
// Whether all are aligned, inside live allocations, and allowed. Else they go lane by lane, which finds
// the first at fault.
bool accessible(Warp& w, const LaneAccess& a, bool write);
// Counts and notes the access. `values`: of a plain store, by lane.
using LaneValues = std::array<uint8_t, 16>[32];
bool touch_global(Warp& w, const LaneAccess& a, Access how, const LaneValues* values = nullptr);
// After either, the values of one lane.
void read_touched(const Warp& w, uint64_t address, void* data, uint32_t bytes, bool buffered);
void write_touched(Warp& w, uint64_t address, const void* data, uint32_t bytes, Access how);
// Traffic for the counters, of what does not go through touch_global.
void count_global(Warp& w, const uint64_t* address, uint32_t lanes, uint32_t bytes);

}  // namespace l4k::emu
