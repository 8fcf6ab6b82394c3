// What the CTAs of a cluster do together: reductions over all threads, and a barrier over some of
// them. Every thread of every CTA gets the same bits of a reduction: warps, CTAs and ranks are
// combined in a fixed order.
#pragma once
#include "ptx/cluster.cuh"
#include "ptx/sync.cuh"
#include "tile/reduce.cuh"

namespace l4k {

constexpr int kClusterMaxCtas = 8;

// 16 bytes per warp and per CTA.
struct __align__(16) ClusterScratch {
  uint4 warps[32];
  uint4 ranks[2][kClusterMaxCtas];  // alternate: one cluster barrier per reduction is enough
};

// A value to reduce has bits(), from(bits) and warp_reduce(); a default one is neutral.

// Combines a CTA's threads and shows the result to all CTAs: on return `scratch.ranks[parity]` holds
// the partial of each rank. Called by all threads of the cluster, which must have passed a barrier
// before the first call; `parity` alternates between calls.
template <typename T>
__device__ __forceinline__ void cluster_share(T value, ClusterScratch& scratch, int ctas,
                                              int parity) {
  const int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
  value = value.warp_reduce();
  if (lane == 0) scratch.warps[threadIdx.x / 32] = value.bits();
  __syncthreads();
  if (threadIdx.x < 32) {
    T partial{};
    if (lane < num_warps) partial = T::from(scratch.warps[lane]);
    partial = partial.warp_reduce();
    if (lane < ctas)
      ptx::store_cluster(&scratch.ranks[parity][ptx::cluster_cta_rank()], lane, partial.bits());
  }
  __syncwarp();
  ptx::cluster_sync();
}

template <typename T>
__device__ __forceinline__ T cluster_reduce(T value, ClusterScratch& scratch, int ctas,
                                            int& parity) {
  cluster_share(value, scratch, ctas, parity);
  const int lane = threadIdx.x % 32;
  value = lane < ctas ? T::from(scratch.ranks[parity][lane]) : T{};
  parity ^= 1;
  return value.warp_reduce();
}

// A barrier over a part of every CTA's threads, where barrier.cluster would need all of them. What
// they wrote to shared memory before arrive(), those of all CTAs may read after wait().
struct ClusterBarrier {
  uint64_t mbarrier;

  __device__ __forceinline__ void init(int ctas) { ptx::mbarrier_init(&mbarrier, ctas); }

  // Called by all `threads` of this CTA's part, which share the named barrier. Those that arrive at
  // the other CTAs are lanes of one warp, so that the slow fence of a release is paid once. Without
  // a release an arrival says only that these threads have read what they wanted.
  template <bool kRelease = true>
  __device__ __forceinline__ void arrive(int named_barrier, int threads, int thread, int ctas) {
    ptx::named_barrier_sync(named_barrier, threads);
    if (ctas == 1) {
      if (thread == 0) ptx::mbarrier_arrive(&mbarrier);
    } else if (thread < ctas) {
      ptx::mbarrier_arrive_remote<kRelease>(&mbarrier, thread);
    }
  }
  __device__ __forceinline__ void wait(uint32_t parity) {
    ptx::mbarrier_wait_cluster(&mbarrier, parity);
  }
};

}  // namespace l4k
