// The queue of tensor-core operations in flight of a warp.
#pragma once

#include "machine/state.h"

namespace l4k::emu {

// Remembers a move whose source is an accumulator in flight.
void defer_move(Warp& w, const Src& to, const Src& from, uint32_t bytes);
// Random mode: performs the oldest committed operation that has not been performed yet.
void compute_one(Warp& w);
// Reports a wgmma that the warp leaves to the rest of its warpgroup.
void check_warpgroup_exit(Warp& w);

}  // namespace l4k::emu
