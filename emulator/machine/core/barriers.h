// Completion of the barriers of CTAs and clusters.
#pragma once

#include "machine/core/machine.h"

namespace l4k::emu {

// What ended warps did comes before the end of a barrier of the whole CTA, which waits for them.
void join_ended(NamedBarrier& b, const Cta& cta);
// Lets the waiting warps go and makes the barrier ready for its next phase.
void complete_barrier(NamedBarrier& b);
void complete_cluster_barrier(Cluster& c);
// Writes the result of a bar.red to the active lanes.
void write_reduction(Warp& w, const BarrierWaiter& waiter, const NamedBarrier& b);
// Completes what waits for nobody any more, after a warp of the CTA has ended.
void retry_barriers(Cta& cta);

}  // namespace l4k::emu
