// Access to every state space on behalf of a warp.
#pragma once

#include "machine/core/global.h"

namespace l4k::emu {

// weak: may see a stale value. coherent: relaxed, .cg. volatile_: coherent, and orders nothing among the
// lanes of a warp. acquire: of a scope wider than the CTA. nc: read-only cache.
enum class Order : uint8_t { weak, coherent, volatile_, acquire, nc };

struct SharedPlace {
  Cta* cta;
  uint32_t offset;
};
// What a shared address is used for: an arrival at a CTA that may have ended is a rule of its own.
enum class Use : uint8_t { data, mbarrier };
// A 32-bit shared address: own CTA, or (rank + 1) << 24 | offset as mapa makes it.
SharedPlace shared_place(Warp& w, uint64_t address, int lane, Use use = Use::data);
inline uint64_t map_rank(uint32_t address, uint32_t rank) {
  return (uint64_t{rank} + 1) << 24 | (address & 0xffffff);
}
// Space of a generic address, which becomes an address in that space.
Space generic_space(uint64_t* address);

inline bool is_coherent(Order order) { return order != Order::weak && order != Order::nc; }
inline Access load_access(Order order) {
  return is_coherent(order)   ? Access::coherent_read
         : order == Order::nc ? Access::nc_read
                              : Access::read;
}
inline Access store_access(const Warp& w, Order order) {
  return order == Order::weak && w.m->buffers_stores() ? Access::buffered_write : Access::write;
}
// What a coherent access passes on, before the load and after the store.
void acquire_global(Warp& w, uint64_t address, Order order);
void release_global(Warp& w, uint64_t address);

// Returns which of the bytes are undefined, a bit each, and where they come from.
uint32_t read_memory(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes, void* out,
                     Order order, Origin* from);
void write_memory(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes,
                  const void* data, Order order);
// After that: the bytes are undefined nevertheless. In global memory that is an error.
void write_undefined(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes,
                     const Reg& value);
bool holds_mbarrier(const Cta& cta, uint64_t begin, uint64_t end);  // any part of a live one
void check_no_mbarrier(const Cta& cta, uint32_t offset, uint32_t bytes, int lane);
void check_aligned(uint64_t address, uint32_t bytes, int lane);

// Clocks passed through flags in memory. After releasing, the instruction calls w.release() once.
void release_flag(Warp& w, uint64_t key);
void acquire_flag(Warp& w, uint64_t key);
// The same between the CTAs of the grid, for global memory. `release`, `acquire`: the access is one
// itself; without, a fence must come before, or after it.
void release_to_grid(Warp& w, uint64_t address, bool release);
void acquire_from_grid(Warp& w, uint64_t address, bool acquire);

// Bank conflicts of one warp-wide access, for the counters.
void count_shared(Warp& w, const uint64_t* address, uint32_t lanes, uint32_t bytes);

}  // namespace l4k::emu
