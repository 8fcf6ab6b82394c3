// One warpgroup fills a buffer, the other empties it; named barriers hand it to and fro.
//
// mutant | report | what
// 1 | deadlock barrier-mismatch divergent-barrier | the filler arrives counting one warp more than the emptier
// 2 | deadlock | the filler does not say that the buffer is full
// 3 | shared-race uninitialised-shared-read | the emptier does not wait until the buffer is full
// 4 | shared-race | the filler does not wait until the buffer is empty
// 5 | shared-race uninitialised-shared-read | the filler arrives before it has written
// 6 | deadlock | the emptier waits at another barrier than the filler arrives at
// 7 | barrier-mismatch divergent-barrier | the barrier's count is not a multiple of the warp size
// 8 | barrier-mismatch divergent-barrier | a barrier number that the hardware lacks
// 9 | deadlock shared-race | the two warpgroups wait for each other's first step
#include "device.cuh"
#include "host.h"

constexpr int kGroup = 128, kSteps = 4, kFull = 1, kEmpty = 2;

template <int MUTANT>
__global__ void mirror(const float* x, float* y) {
  __shared__ float buffer[kGroup];
  int thread = static_cast<int>(threadIdx.x) % kGroup;
  if (threadIdx.x < kGroup) {
    for (int step = 0; step < kSteps; ++step) {
      if (step > 0 || MUTANT == 9)
        UNLESS(4) named_sync(kEmpty, 2 * kGroup);  // @1 @2 @6 @9
      ONLY(5) named_arrive(kFull, 2 * kGroup);
      buffer[thread] = x[step * kGroup + thread];  // @3 @4 @5
      UNLESS(2)
        UNLESS(5)
          named_arrive(PICK(8, kFull, 16), 2 * kGroup + PICK(1, PICK(7, 0, 8), 32));  // @1 @7 @8
    }
  } else {
    for (int step = 0; step < kSteps; ++step) {
      UNLESS(3) named_sync(PICK(6, kFull, 3), 2 * kGroup);      // @1 @2 @6 @7 @9
      y[step * kGroup + thread] = buffer[kGroup - 1 - thread];  // @3 @4 @5
      if (step + 1 < kSteps) named_arrive(kEmpty, 2 * kGroup);
    }
  }
}

template <int MUTANT>
int run() {
  auto x = small_floats(kSteps * kGroup);
  Buffer<float> dx(x), dy(kSteps * kGroup);
  std::vector<float> want(kSteps * kGroup);
  for (int i = 0; i < kSteps * kGroup; ++i)
    want[i] = x[i / kGroup * kGroup + kGroup - 1 - i % kGroup];
  launch(mirror<MUTANT>, {.grid = 1, .block = 2 * kGroup}, dx.data, dy.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dy.download(), want);
}
MAIN(9)
