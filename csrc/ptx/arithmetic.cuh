// Arithmetic that has an instruction but no operator.
#pragma once
#include <cstdint>

namespace l4k {

constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr float kNan = __builtin_nanf("");

namespace ptx {

// PTX ISA: ex2.approx. 2^x; results below the normal range are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// PTX ISA: rcp.approx. 1 / x to one unit in the last place; of x above 2^126 it is 0.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float d;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// PTX ISA: fma.rn.bf16x2, with subnormals. a * b + c of two pairs, each rounded once.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// PTX ISA: mul.rn.bf16x2, with subnormals.
__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// The same value, of which the compiler knows nothing: what follows from it is not computed ahead
// of a loop and kept in registers.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
template <typename T>
__device__ __forceinline__ T* opaque(T* address) {
  asm volatile("" : "+l"(address));
  return address;
}

// PTX ISA: redux.sync over a converged warp.
__device__ __forceinline__ uint32_t warp_max_u32(uint32_t value) {
  uint32_t d;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(d) : "r"(value));
  return d;
}

__device__ __forceinline__ uint32_t warp_min_u32(uint32_t value) {
  uint32_t d;
  asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(d) : "r"(value));
  return d;
}

__device__ __forceinline__ uint32_t warp_sum_u32(uint32_t value) {
  uint32_t d;
  asm volatile("redux.sync.add.u32 %0, %1, 0xffffffff;" : "=r"(d) : "r"(value));
  return d;
}

}  // namespace ptx
}  // namespace l4k
