// Reductions and running totals over part of a warp, a warp and a CTA. Every thread of a reduction
// gets the same bits: butterflies add in an order that does not depend on the lane, and each warp
// combines the warps' results in the same order.
#pragma once
#include <cstdint>

#include "ptx/arithmetic.cuh"

namespace l4k {

template <int kLanes = 32, typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffff, value, distance);
  return value;
}

template <int kLanes = 32>
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, distance));
  return value;
}

template <int kLanes = 32>
__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
  if constexpr (kLanes == 32) {
    return ptx::warp_max_u32(value);
  } else {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
      value = max(value, __shfl_xor_sync(0xffffffff, value, distance));
    return value;
  }
}

// Over the lanes up to this one.
template <typename T>
__device__ __forceinline__ T warp_running_sum(T value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const T before = __shfl_up_sync(0xffffffff, value, distance);
    if (static_cast<int>(threadIdx.x % 32) >= distance) value += before;
  }
  return value;
}

__device__ __forceinline__ int warp_running_max(int value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int before = __shfl_up_sync(0xffffffff, value, distance);
    if (static_cast<int>(threadIdx.x % 32) >= distance) value = max(value, before);
  }
  return value;
}

// Whole warps only. `partials` is one word per warp of the CTA. There is one barrier, between the
// writes and the reads: the caller must not pass the same `partials` twice in a row.
__device__ __forceinline__ float cta_sum(float value, float* partials) {
  const int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
  value = warp_sum(value);
  if (num_warps == 1) return value;
  if (lane == 0) partials[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_sum(lane < num_warps ? partials[lane] : 0.f);
}

__device__ __forceinline__ uint32_t cta_sum(uint32_t value, uint32_t* partials) {
  const int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
  value = ptx::warp_sum_u32(value);
  if (num_warps == 1) return value;
  if (lane == 0) partials[threadIdx.x / 32] = value;
  __syncthreads();
  return ptx::warp_sum_u32(lane < num_warps ? partials[lane] : 0u);
}

__device__ __forceinline__ uint32_t cta_max(uint32_t value, uint32_t* partials) {
  const int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
  value = warp_max(value);
  if (num_warps == 1) return value;
  if (lane == 0) partials[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_max(lane < num_warps ? partials[lane] : 0u);
}

}  // namespace l4k
