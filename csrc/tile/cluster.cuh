// Reductions over all threads of a cluster. Every thread of every CTA gets the same bits: warps,
// CTAs and ranks are combined in a fixed order.
#pragma once
#include "ptx/cluster.cuh"
#include "ptx/sync.cuh"
#include "tile/reduce.cuh"

namespace l4k {

constexpr int kClusterMaxCtas = 16;

struct ClusterScratch {
  uint2 warps[32];
  uint2 ranks[2][kClusterMaxCtas];  // alternate: one cluster barrier per reduction is enough
};

// A count and a sum.
struct Mass {
  uint32_t count;
  float sum;

  __device__ __forceinline__ Mass operator+(Mass other) const {
    return {count + other.count, sum + other.sum};
  }
};

// The likelier of two tokens: by score, then by lower id. Scores are ordered as unsigned integers.
struct Candidate {
  uint32_t score;
  uint32_t id;

  __device__ __forceinline__ Candidate operator+(Candidate other) const {
    return other.score > score || (other.score == score && other.id < id) ? other : *this;
  }
};

constexpr uint32_t kNoId = ~0u;

__device__ __forceinline__ uint2 bits_of(Mass m) { return {m.count, __float_as_uint(m.sum)}; }
__device__ __forceinline__ uint2 bits_of(Candidate c) { return {c.score, c.id}; }
__device__ __forceinline__ void from_bits(uint2 v, Mass& m) { m = {v.x, __uint_as_float(v.y)}; }
__device__ __forceinline__ void from_bits(uint2 v, Candidate& c) { c = {v.x, v.y}; }

template <typename T>
__device__ __forceinline__ T warp_reduce(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint2 mine = bits_of(value);
    T other;
    from_bits({__shfl_xor_sync(0xffffffff, mine.x, distance),
               __shfl_xor_sync(0xffffffff, mine.y, distance)},
              other);
    value = value + other;
  }
  return value;
}

// Called by all threads of all CTAs of the cluster. `zero` is neutral; `parity` alternates between
// calls. The cluster must have passed a barrier before the first call.
template <typename T>
__device__ __forceinline__ T cluster_reduce(T value, T zero, ClusterScratch& scratch, int ctas,
                                            int& parity) {
  const int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
  value = warp_reduce(value);
  if (lane == 0) scratch.warps[threadIdx.x / 32] = bits_of(value);
  __syncthreads();
  if (threadIdx.x < 32) {
    T partial = zero;
    if (lane < num_warps) from_bits(scratch.warps[lane], partial);
    partial = warp_reduce(partial);
    if (lane < ctas)
      ptx::store_cluster(&scratch.ranks[parity][ptx::cluster_cta_rank()], lane, bits_of(partial));
  }
  __syncwarp();
  ptx::cluster_sync();
  from_bits(scratch.ranks[parity][0], value);
  for (int rank = 1; rank < ctas; ++rank) {
    T other;
    from_bits(scratch.ranks[parity][rank], other);
    value = value + other;
  }
  parity ^= 1;
  return value;
}

}  // namespace l4k
