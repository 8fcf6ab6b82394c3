// out = sum of all 32-bit words of a buffer, modulo 2^32
//
// The fastest way to touch every byte once: its rate is the read ceiling of a GPU, the denominator
// of everything that streams weights or keys. Eight 16-byte loads per thread and step, of which ptxas
// keeps at least four in flight, and 2,048 threads per SM: 128 KB, far beyond the 27 KB that
// latency x bandwidth asks for.
// Integer atomics, so the result does not depend on order. See docs/kernels/word_sum.md.
#pragma once
#include "probes/word_sum/word_sum.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"

namespace l4k {

constexpr int kWordSumThreads = 512;
constexpr int kWordSumUnroll = 8;

__global__ void __launch_bounds__(kWordSumThreads) word_sum_kernel(WordSumParams params) {
  const auto* data = static_cast<const uint4*>(params.data);
  const int64_t stride = int64_t{gridDim.x} * kWordSumThreads;
  uint32_t sum = 0;
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  int64_t i = int64_t{blockIdx.x} * kWordSumThreads + threadIdx.x;
  for (; i + (kWordSumUnroll - 1) * stride < params.num_vectors; i += kWordSumUnroll * stride) {
    uint4 v[kWordSumUnroll];
#pragma unroll
    for (int u = 0; u < kWordSumUnroll; ++u) v[u] = ptx::load_streaming(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < kWordSumUnroll; ++u) sum += v[u].x + v[u].y + v[u].z + v[u].w;
  }
  for (; i < params.num_vectors; i += stride) {
    const uint4 v = ptx::load_streaming(data + i);
    sum += v.x + v.y + v.z + v.w;
  }
  sum = __reduce_add_sync(0xffffffff, sum);
  if (threadIdx.x % 32 == 0) atomicAdd(params.out, sum);
}

}  // namespace l4k
