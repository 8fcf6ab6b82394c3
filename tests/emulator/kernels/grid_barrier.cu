// A cooperative grid: every block writes, all blocks meet at a barrier of atomics, every block
// reads what its neighbour wrote.
//
// mutant | report | what
// 1 | stale-global-read | the arrival is relaxed: it publishes nothing
// 2 | stale-global-read | the arrival is a release of block scope
// 3 | stale-global-read | no barrier of the block before its arrival
// 4 | deadlock | the barrier waits for one block more than there are
// 5 | stale-global-read | no grid barrier
// 6 | stale-global-read | the other threads of the block do not wait for the one that polls
// 7 | stale-global-read deadlock | the arrival is a plain increment
// 8 | acquire-fence-missing | the poll is relaxed
// 9 | stale-global-read | the poll is relaxed before values that the block has read older ones of
#include "device.cuh"
#include "host.h"

constexpr int kBlocks = 4, kThreads = 64, kRounds = 3;

template <int MUTANT>
DEVICE void arrive(unsigned* counter) {
  if constexpr (MUTANT == 1)
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  else if constexpr (MUTANT == 2)
    asm volatile("red.release.cta.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  else if constexpr (MUTANT == 7) *counter = *counter + 1;  // @7
  else asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
template <int MUTANT>
DEVICE unsigned poll(const unsigned* counter, int round) {
  unsigned value;
  if (MUTANT == 8 || (MUTANT == 9 && round == 1))
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  else asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

template <int MUTANT>
__global__ void rounds(float* ping, float* pong, unsigned* counter) {
  int i = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  for (int round = 0; round < kRounds; ++round) {
    const float* from = round % 2 ? pong : ping;
    float* to = round % 2 ? ping : pong;
    to[block * kThreads + i] =
        from[(block + 1) % kBlocks * kThreads + i] + 1.0f;  // @1 @2 @3 @5 @6 @7 @8 @9
    UNLESS(3) __syncthreads();
    if (threadIdx.x == 0 && MUTANT != 5) {
      arrive<MUTANT>(counter);
      while (poll<MUTANT>(counter, round) < (round + 1) * (kBlocks + PICK(4, 0, 1))) {  // @4 @7
      }
    }
    UNLESS(6) __syncthreads();  // @4 @7
  }
}

template <int MUTANT>
int run() {
  auto x = small_floats(kBlocks * kThreads);
  Buffer<float> ping(x), pong(x);
  Buffer<unsigned> counter(1);
  counter.zero();
  void *a = ping.data, *b = pong.data, *c = counter.data;
  void* args[] = {&a, &b, &c};
  CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(rounds<MUTANT>), dim3(kBlocks),
                                    dim3(kThreads), args, 0, nullptr));
  CHECK(cudaDeviceSynchronize());
  std::vector<float> want(x.size());
  for (int i = 0; i < kBlocks * kThreads; ++i)
    want[i] = x[(i + kRounds * kThreads) % (kBlocks * kThreads)] + kRounds;
  return verdict(pong.download(), want);
}
MAIN(9)
