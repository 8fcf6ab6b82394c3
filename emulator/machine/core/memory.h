// Access to every state space on behalf of a warp.
#pragma once

#include "machine/core/machine.h"

namespace l4k::emu {

// weak: may see a stale value. coherent: volatile, relaxed, .cg. acquire: of a scope wider than the
// CTA. nc: read-only cache.
enum class Order : uint8_t { weak, coherent, acquire, nc };

struct SharedPlace {
  Cta* cta;
  uint32_t offset;
};
// A 32-bit shared address: own CTA, or (rank + 1) << 24 | offset as mapa makes it.
enum class Use : uint8_t { data, mbarrier };
SharedPlace shared_place(Warp& w, uint64_t address, int lane, Use use = Use::data);
inline uint64_t map_rank(uint32_t address, uint32_t rank) {
  return (uint64_t{rank} + 1) << 24 | (address & 0xffffff);
}
// Space of a generic address, which becomes an address in that space.
Space generic_space(uint64_t* address);

void read_memory(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes, void* out,
                 Order order);
void write_memory(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes,
                  const void* data, Order order);
// Host pointer to `bytes` of global memory for an asynchronous or atomic access; faults outside.
uint8_t* global_pointer(Warp& w, int lane, uint64_t address, uint64_t bytes, bool write);
// Bookkeeping of a global access: traffic, and races between CTAs and between overlapping kernels.
enum class Access : uint8_t { read, coherent_read, write, bulk_write, atomic };
void note_global(Warp& w, uint64_t address, uint64_t bytes, Access how, int lane);
// Faults if another CTA holds one of these bytes in its store buffer.
void check_published(Warp& w, uint64_t address, uint64_t bytes, const char* what, int lane);
void check_no_mbarrier(const Cta& cta, uint32_t offset, uint32_t bytes, int lane);
void check_aligned(uint64_t address, uint32_t bytes, int lane);

// Clocks passed through flags in memory. After releasing, the instruction calls w.release() once.
void release_flag(Warp& w, uint64_t key);
void acquire_flag(Warp& w, uint64_t key);
// The same between the CTAs of the grid, for global memory. `release`, `acquire`: the access is one
// itself; without, a fence must come before, or after it.
void release_to_grid(Warp& w, uint64_t address, bool release);
void acquire_from_grid(Warp& w, uint64_t address, bool acquire);

// Traffic of one warp-wide access, for the counters.
void count_global(Warp& w, const uint64_t* address, uint32_t lanes, uint32_t bytes);
void count_shared(Warp& w, const uint64_t* address, uint32_t lanes, uint32_t bytes);

}  // namespace l4k::emu
