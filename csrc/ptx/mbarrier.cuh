// mbarrier: a barrier in shared memory that counts arrivals and bytes of bulk copies.
#pragma once
#include <cstdint>

namespace l4k::ptx {

// Shared-state-space address of a generic pointer into shared memory (32 bits suffice).
__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// PTX ISA: mbarrier.init. Follow with fence_mbarrier_init() when async proxies or other CTAs of
// the cluster will use the barrier, then with a CTA or cluster barrier.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals)
               : "memory");
}

// PTX ISA: fence.mbarrier_init. Makes prior inits visible to the cluster and to the async proxy.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// PTX ISA: mbarrier.arrive
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}

// PTX ISA: mbarrier.arrive on the barrier at the same offset in CTA `cta_rank` of the cluster. With
// kRelease what this thread wrote becomes visible there, by a fence as wide as the GPU; without, it
// says no more than that wgmma has read a stage.
template <bool kRelease>
__device__ __forceinline__ void mbarrier_arrive_remote(uint64_t* barrier, uint32_t cta_rank) {
#define L4K_ARRIVE(semantics)                                                \
  asm volatile(                                                              \
      "{\n\t.reg .b32 remote;\n\t"                                           \
      "mapa.shared::cluster.u32 remote, %0, %1;\n\t"                         \
      "mbarrier.arrive" semantics                                            \
      ".shared::cluster.b64 _, [remote];\n\t}" ::"r"(smem_address(barrier)), \
      "r"(cta_rank)                                                          \
      : "memory")
  if constexpr (kRelease) L4K_ARRIVE(".release.cluster");
  else L4K_ARRIVE("");
#undef L4K_ARRIVE
}

// PTX ISA: mbarrier.arrive.expect_tx. One arrival that also announces `bytes` of bulk copies.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)),
      "r"(bytes)
      : "memory");
}

// PTX ISA: mbarrier.try_wait.parity. Returns once the phase with this parity has completed.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "WAIT:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@done bra DONE;\n\t"
      "bra WAIT;\n\t"
      "DONE:\n\t}" ::"r"(smem_address(barrier)),
      "r"(parity)
      : "memory");
}

// The same, acquiring what threads of other CTAs of the cluster released to the barrier.
__device__ __forceinline__ void mbarrier_wait_cluster(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "WAIT:\n\t"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n\t"
      "@done bra DONE;\n\t"
      "bra WAIT;\n\t"
      "DONE:\n\t}" ::"r"(smem_address(barrier)),
      "r"(parity)
      : "memory");
}

}  // namespace l4k::ptx
