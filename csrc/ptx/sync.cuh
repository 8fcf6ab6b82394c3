// Order between threads, proxies, CTAs and grids.
#pragma once
#include <cstdint>

namespace l4k::ptx {

// PTX ISA: fence.proxy.async. Orders this thread's generic writes to shared memory before later
// reads by the async proxy (TMA, wgmma); a barrier must carry it to the thread that issues those.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// PTX ISA: bar.sync with an id, for a subset of the CTA's warps (`threads` a multiple of 32).
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// PTX ISA: barrier.cluster. A release makes what the thread wrote visible to the cluster, by a fence
// as wide as the GPU.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// Says no more than that the thread has come: enough after fence_mbarrier_init(), which publishes
// new barriers by itself, and where CTAs only wait for each other before they leave.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

__device__ __forceinline__ uint32_t cluster_cta_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// PTX ISA: setmaxnreg. Takes effect for a whole warpgroup; counts must be multiples of 8 in 24..256,
// and the sum over warpgroups must fit what the CTA was launched with, else the kernel hangs.
template <int kRegisters>
__device__ __forceinline__ void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// PTX ISA: griddepcontrol.wait. Returns when the grids this one depends on have finished and their
// writes are visible. EVERY CTA must execute it before it ends: a grid that finishes without waiting
// lets the grid after next start while the previous one still runs.
__device__ __forceinline__ void grid_dependency_wait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// PTX ISA: griddepcontrol.launch_dependents. The next grid may start once all CTAs have said so.
__device__ __forceinline__ void grid_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace l4k::ptx
