// cp.async: copies of a few bytes to shared memory that need no registers.
#pragma once
#include <cstdint>

#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"

namespace l4k::ptx {

// PTX ISA: cp.async. 16 bytes, or 16 zeros and nothing read.
__device__ __forceinline__ void copy_16_or_zeros(uint32_t smem, const void* source, bool read,
                                                 uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(smem),
               "l"(source), "r"(read ? 16 : 0), "l"(policy)
               : "memory");
}

// PTX ISA: cp.async. 16 bytes.
__device__ __forceinline__ void copy_16(uint32_t smem, const void* source, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(smem),
               "l"(source), "l"(policy)
               : "memory");
}

// PTX ISA: cp.async.mbarrier.arrive.noinc. Arrives once the thread's copies so far have landed.
__device__ __forceinline__ void copies_arrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_address(barrier))
               : "memory");
}

// PTX ISA: cp.async.wait_all. The thread's own copies; for one that has nothing else left to do.
__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace l4k::ptx
