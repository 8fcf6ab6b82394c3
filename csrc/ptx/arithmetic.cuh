// Arithmetic that has an instruction but no operator.
#pragma once
#include <cstdint>

namespace l4k::ptx {

// PTX ISA: redux.sync, the maximum over a converged warp.
__device__ __forceinline__ uint32_t warp_max_u32(uint32_t value) {
  uint32_t d;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(d) : "r"(value));
  return d;
}

}  // namespace l4k::ptx
