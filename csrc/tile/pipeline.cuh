// A ring of stages between a producer and consumers: one full and one empty barrier per stage.
#pragma once
#include "ptx/mbarrier.cuh"

namespace l4k {

// Where a role stands in the ring. A wait on `phase` passes once the barrier has completed that
// phase; both roles walk the ring in the same order and flip the phase at its end.
template <int kStages>
struct Stage {
  int index = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance() {
    if (++index == kStages) {
      index = 0;
      phase ^= 1;
    }
  }
};

template <int kStages>
struct Pipeline {
  uint64_t full[kStages];   // the producers' arrivals and the bytes of their copies
  uint64_t empty[kStages];  // one arrival per consumer that has read the stage

  __device__ __forceinline__ void init(int consumers, int producers = 1) {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(&full[i], producers);
      ptx::mbarrier_init(&empty[i], consumers);
    }
    ptx::fence_mbarrier_init();
  }

  // A new barrier counts as having completed the phase before its first, so the producer's first
  // round through the ring does not block.
  __device__ __forceinline__ void wait_empty(const Stage<kStages>& stage) {
    ptx::mbarrier_wait(&empty[stage.index], stage.phase ^ 1);
  }
  __device__ __forceinline__ void wait_full(const Stage<kStages>& stage) {
    ptx::mbarrier_wait(&full[stage.index], stage.phase);
  }
  __device__ __forceinline__ void release(int index) { ptx::mbarrier_arrive(&empty[index]); }
};

}  // namespace l4k
