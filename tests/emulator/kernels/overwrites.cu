// Stores to global memory by warps and CTAs that nothing orders: places of one's own, in turns after a
// barrier, through atomics and volatile flags.
//
// mutant | report | what
// 1 | global-race | the CTAs store to one row
// 2 | same-value-race | the CTAs store the same values to one row
// 3 | global-race | the two warps of a CTA store to one half
// 4 | same-value-race | ... the same values
// 5 | global-race | no barrier between the turns of two warps
// 6 | global-race | one byte of a word belongs to two warps
#include "device.cuh"
#include "host.h"

constexpr int kCtas = 8, kThreads = 64;

template <int MUTANT>
__global__ void rows(int* y, unsigned char* bytes) {
  int cta = static_cast<int>(blockIdx.x), tid = static_cast<int>(threadIdx.x);
  int row = PICK(1, PICK(2, cta, 0), 0) * kThreads;
  int value = PICK(2, cta * 100, 0) + PICK(3, PICK(4, tid, 0), tid);
  y[row + PICK(3, PICK(4, tid, tid & 31), tid & 31)] = value;  // @1 @2 @3 @4
  __syncthreads();
  unsigned char* mine = bytes + (cta * kThreads + tid) * 3;
  mine[0] = static_cast<unsigned char>(tid);  // @6
  mine[1] = 1;
  if (PICK(6, false, tid == 31)) mine[3] = 77;  // @6
}

// Two warps that take turns, a flag that several set, and a count.
template <int MUTANT>
__global__ void turns(int* y, volatile int* flag, int* count) {
  int tid = static_cast<int>(threadIdx.x);
  if (tid < 32) y[tid] = 1;  // @5
  UNLESS(5) __syncthreads();
  if (tid >= 32) y[tid - 32] = tid;  // @5
  if (tid % 32 == 0) *flag = tid;
  atomicAdd(count, 1);
}

template <int MUTANT>
int run() {
  Buffer<int> y(kCtas * kThreads), flag(1), count(1);
  Buffer<unsigned char> bytes(kCtas * kThreads * 3 + 1);
  count.zero();
  launch(rows<MUTANT>, {.grid = kCtas, .block = kThreads}, y.data, bytes.data);
  CHECK(cudaDeviceSynchronize());
  std::vector<int> want(kCtas * kThreads);
  for (int i = 0; i < kCtas * kThreads; ++i) want[i] = i / kThreads * 100 + i % kThreads;
  if (int failed = verdict(y.download(), want)) return failed;
  launch(turns<MUTANT>, {.grid = 1, .block = kThreads}, y.data, flag.data, count.data);
  CHECK(cudaDeviceSynchronize());
  for (int i = 0; i < 32; ++i) want[i] = i + 32;
  if (int failed = verdict(y.download(), want)) return failed;
  return verdict(count.download(), std::vector<int>{kThreads});
}
MAIN(6)
