// Words shared by host and device; compiles under g++ and nvcc.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define L4K_HD __host__ __device__ __forceinline__
#else
#define L4K_HD inline
#endif

namespace l4k {

template <typename T>
L4K_HD constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <typename T>
L4K_HD constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

}  // namespace l4k
