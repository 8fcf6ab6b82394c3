// The kernel that makes a plan: one CTA, a thread for each CTA of the kernels that take it.
#pragma once
#include "kernels/flash_decode/flash_decode.h"
#include "kernels/flash_decode/plan.h"
#include "ptx/sync.cuh"
#include "tile/reduce.cuh"

namespace l4k {

constexpr int kDecodePlanThreads = kDecodeMaxGrid;

struct DecodePlannerSmem {
  uint32_t tiles[kDecodePlanThreads / 32], largest[kDecodePlanThreads / 32];  // of each warp
  uint32_t lengths[kDecodePlanThreads / 32];
  uint32_t ends[kDecodePlanThreads];  // in the schedule, of the sequences of the threads up to this
};

// The first thread whose sequences end after `place`; one that does not exist if none does.
__device__ __forceinline__ int thread_at(const uint32_t (&ends)[kDecodePlanThreads],
                                         uint32_t place) {
  int low = 0, high = kDecodePlanThreads;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ends[middle] > place) high = middle;
    else low = middle + 1;
  }
  return low;
}

// A fence for the launches behind it: it lets the next one start when those before it have ended.
__global__ void __launch_bounds__(kDecodePlanThreads)
    flash_decode_plan_kernel(const __grid_constant__ FlashDecodePlanParams p) {
  __shared__ DecodePlannerSmem smem;
  const DecodeShape& shape = p.header.shape;
  const int thread = threadIdx.x, warp = thread / 32;
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  // Each thread has as many sequences, one after the other.
  const int share = ceil_div(shape.batch, kDecodePlanThreads);
  const int first = min(thread * share, shape.batch), end = min(first + share, shape.batch);
  DecodeTotals totals{0, 0};
  for (int b = first; b < end; ++b) {
    const int length = p.seqlens_k[b];
    p.plan[kDecodeLengths + b] = length;
    const auto tiles = static_cast<uint32_t>(decode_sequence(shape, length).tiles);
    totals.tiles += tiles * static_cast<uint32_t>(shape.items());
    totals.largest = max(totals.largest, tiles);
  }
  totals = {cta_sum(totals.tiles, smem.tiles), cta_max(totals.largest, smem.largest)};
  const DecodeSchedule schedule = decode_schedule(shape, totals);
  const DecodeSplitting splitting = schedule.splitting;

  uint32_t length = 0;  // of the thread's sequences in the schedule
  for (int b = first; b < end; ++b) {
    const int tiles = decode_sequence(shape, p.seqlens_k[b]).tiles;
    length +=
        splitting.item_length(splitting.split(tiles), tiles) * static_cast<uint32_t>(shape.items());
  }
  uint32_t place = warp_running_sum(length);
  if (thread % 32 == 31) smem.lengths[warp] = place;
  __syncthreads();
  for (int w = 0; w < warp; ++w) place += smem.lengths[w];
  smem.ends[thread] = place;
  __syncthreads();

  if (thread < kDecodeHeaderWords) p.plan[thread] = reinterpret_cast<const int*>(&p.header)[thread];
  if (thread >= shape.grid) return;
  for (int i = thread; i < kDecodeSlotsPerCta * shape.grid; i += shape.grid)
    p.plan[kDecodeCounters + i] = 0;
  const uint32_t begin = schedule.begin_of(thread, shape.grid);
  const int owner = thread_at(smem.ends, begin);
  DecodePlace found = no_decode_work(shape, splitting);
  if (owner < kDecodePlanThreads)
    found.work = first_work(shape, splitting, p.seqlens_k, owner * share,
                            owner == 0 ? 0 : smem.ends[owner - 1], begin,
                            schedule.begin_of(thread + 1, shape.grid));
  reinterpret_cast<DecodePlace*>(p.plan + kDecodePlaces)[thread] = found;
}

}  // namespace l4k
