// mbarriers and copies that complete later.
#pragma once

#include "machine/memory.h"

namespace l4k::emu {

Mbarrier& find_mbarrier(Warp& w, const SharedPlace& at, int lane);
// ... that a bulk copy will complete on: its initialisation must be visible to the copy engine.
void find_copy_mbarrier(Warp& w, const SharedPlace& at, int lane);
SharedPlace mbarrier_place(Warp& w, uint64_t address, bool shared_space, int lane);
void mbarrier_arrive(Cta& cta, uint32_t offset, Mbarrier& b, uint32_t count, int lane);
// Bytes of a copy have arrived; `seen` and `proxied` are the issuer's clocks.
void mbarrier_complete(Cta& cta, uint32_t offset, uint32_t bytes, const Clock& seen,
                       const Clock& proxied, uint32_t agent_epoch);
// Lands these lanes' cp.async operations up to a sequence number, then arrivals that wait for them.
void land_copies(Warp& w, uint32_t up_to, uint32_t lanes);

}  // namespace l4k::emu
