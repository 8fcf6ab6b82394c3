// mbarriers, for what arrives on them from elsewhere.
#pragma once

#include "machine/core/memory.h"

namespace l4k::emu {

SharedPlace mbarrier_place(Warp& w, uint64_t address, bool shared_space, int lane);
Mbarrier& find_mbarrier(Warp& w, const SharedPlace& at, int lane);
// ... that a bulk copy will complete on: its initialisation must be visible to the copy engine.
void find_copy_mbarrier(Warp& w, const SharedPlace& at, int lane);
void mbarrier_arrive(Cta& cta, uint32_t offset, Mbarrier& b, uint32_t count, int lane);
// Bytes of a copy have arrived; `seen` and `proxied` are the issuer's clocks, `copy_epoch` is the
// copy engine's (0: none).
void mbarrier_complete(Cta& cta, uint32_t offset, uint32_t bytes, const Clock& seen,
                       const Clock& proxied, uint32_t copy_epoch);

}  // namespace l4k::emu
