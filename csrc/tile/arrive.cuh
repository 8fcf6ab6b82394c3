// Who is the last of several CTAs that each hold a part of a sum. Nobody waits: kernels on two streams
// that waited for CTAs of their own could keep each other out for ever.
#pragma once
#include <cstdint>

#include "ptx/memory.cuh"

namespace l4k {

// Counts finished partial results; true for the last. The workspace is uninitialised: a count is
// valid only with this launch's nonce, and the last arrival clears it for the next replay.
__device__ __forceinline__ bool arrive_last(unsigned long long* counter, uint64_t nonce,
                                            int expected_count) {
  __threadfence();  // partial results before the count
  unsigned long long seen = __ldcg(counter), expected, count;
  do {
    expected = seen;
    count = (expected >> 16 == nonce ? expected & 0xffff : 0) + 1;
    seen = atomicCAS(counter, expected, static_cast<unsigned long long>(nonce << 16 | count));
  } while (seen != expected);
  if (count != static_cast<unsigned long long>(expected_count)) return false;
  __threadfence();  // the count before the others' partial results, and before it is cleared
  *counter = 0;
  return true;
}

// Whether all others have arrived: the caller is then the last, need not store its
// own part, and may read theirs.
__device__ __forceinline__ bool is_last(unsigned long long* counter, uint64_t nonce,
                                        int expected_count) {
  const auto others = static_cast<unsigned long long>(nonce << 16 | (expected_count - 1));
  return ptx::compare_and_swap_acquire(counter, others, 0) == others;
}

}  // namespace l4k
