// Activations of single values.
#pragma once

namespace l4k {

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }

__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
}

}  // namespace l4k
