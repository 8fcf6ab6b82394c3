// Activations of single values.
#pragma once
#include "ptx/arithmetic.cuh"

namespace l4k {

// x / (1 + e^-x) in five instructions, two of them special functions: without subnormals neither needs
// its argument scaled. Within 2^-16 of the result down to x = -80; below -87.3 it is 0, where the
// result is above -1.1e-36.
__device__ __forceinline__ float silu(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  return x * ptx::reciprocal_approx(1.f + ptx::exp2_approx(-kLog2E * x));
}

__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
}

}  // namespace l4k
