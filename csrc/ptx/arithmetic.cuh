// Arithmetic that has an instruction but no operator.
#pragma once
#include <cstdint>

namespace l4k::ptx {

// PTX ISA: max, two unsigned halves. On absolute values of bf16 this is the floating-point maximum
// in which a NaN wins: the patterns of NaN lie above that of infinity.
__device__ __forceinline__ uint32_t max_u16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("max.u16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// PTX ISA: redux.sync, the maximum over a converged warp.
__device__ __forceinline__ uint32_t warp_max_u32(uint32_t value) {
  uint32_t d;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(d) : "r"(value));
  return d;
}

}  // namespace l4k::ptx
