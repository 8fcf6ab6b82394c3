// Loads, stores and matrix moves with the width and cache policy spelled out.
#pragma once
#include <cstdint>

#include "ptx/mbarrier.cuh"

namespace l4k::ptx {

// PTX ISA: createpolicy. For data that is read once and should leave L2 first.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// PTX ISA: ld.global. Data that is read once: 16 bytes, not kept in L1. Not ld.global.nc, although
// that would say "read-only": a kernel is resident while its predecessor still writes what this
// one reads, and then .nc promises what is not so.
__device__ __forceinline__ uint4 load_streaming(const void* pointer) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(pointer));
  return v;
}

// PTX ISA: ld.global. The sector of 32 bytes around it comes to L1, where another warp will read it.
__device__ __forceinline__ void touch(const void* pointer) {
  [[maybe_unused]] uint16_t unused;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(unused) : "l"(pointer));
}

// PTX ISA: atom.acquire.cas. Returns what was there; what another thread of the GPU released with it is
// visible afterwards.
__device__ __forceinline__ unsigned long long compare_and_swap_acquire(unsigned long long* pointer,
                                                                       unsigned long long expected,
                                                                       unsigned long long value) {
  unsigned long long seen;
  asm volatile("atom.acquire.gpu.global.cas.b64 %0, [%1], %2, %3;"
               : "=l"(seen)
               : "l"(pointer), "l"(expected), "l"(value)
               : "memory");
  return seen;
}

// PTX ISA: atom.inc. Counts up to `last`, then begins at 0 again; returns what was there. Releases what
// the thread knows of, and acquires what the threads that counted before released.
__device__ __forceinline__ uint32_t increment_wrapping(uint32_t* pointer, uint32_t last) {
  uint32_t seen;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(seen)
               : "l"(pointer), "r"(last)
               : "memory");
  return seen;
}

// PTX ISA: st.global. 16 bytes, not kept in L1.
__device__ __forceinline__ void store_streaming(void* pointer, uint4 v) {
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(v.x),
               "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// PTX ISA: st.global. 8 bytes, not kept in L1: what 16 bytes of bf16 become in e4m3.
__device__ __forceinline__ void store_streaming(void* pointer, uint2 v) {
  asm volatile("st.global.L1::no_allocate.v2.u32 [%0], {%1, %2};" ::"l"(pointer), "r"(v.x), "r"(v.y)
               : "memory");
}

// PTX ISA: st.shared. 16 bytes in one store: left to itself the compiler may split it in four.
__device__ __forceinline__ void store_shared(void* smem, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(smem)), "f"(a), "f"(b),
               "f"(c), "f"(d)
               : "memory");
}

__device__ __forceinline__ void store_shared(void* smem, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(smem)), "r"(v.x),
               "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// PTX ISA: st.shared. 8 bytes.
__device__ __forceinline__ void store_shared(void* smem, uint2 v) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(smem_address(smem)), "r"(v.x), "r"(v.y)
               : "memory");
}

// PTX ISA: stmatrix, four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of
// matrix i / 8. A lane holds elements 2c and 2c + 1 of row lane / 4 of each, c = lane % 4;
// transposed, elements lane / 4 of rows 2c and 2c + 1.
template <bool kTransposed = false>
__device__ __forceinline__ void stmatrix_x4(void* row, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
#define L4K_STMATRIX(trans)                                                    \
  asm volatile("stmatrix.sync.aligned.m8n8.x4" trans                           \
               ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(row)), \
               "r"(a), "r"(b), "r"(c), "r"(d)                                  \
               : "memory")
  if constexpr (kTransposed) L4K_STMATRIX(".trans");
  else L4K_STMATRIX("");
#undef L4K_STMATRIX
}

}  // namespace l4k::ptx
