// Three chained launches: each starts while its predecessor still runs and waits before it reads.
//
// mutant | report | what
// 1 | dependency-race stale-global-read | the middle kernel never waits
// 2 | dependency-race stale-global-read | the middle kernel reads its input before it waits
// 3 | dependency-wait-missing | a block of the middle kernel that has nothing to do ends without waiting
// 4 | dependency-race stale-global-read | the middle kernel overwrites its predecessor's input before it waits
// 5 | dependency-race | one warp waits, and the others read with no barrier after it
// 6 | dependency-wait-late | the first kernel never lets the middle one start early, which then does not wait
// 7 | dependency-race | the last kernel reads the first one's result before it waits; the middle one lets it start too early
// 8 | dependency-race | one block of the first kernel lets the middle one start early, which does not wait
// 9 | dependency-wait-late | the last kernel reads what the middle one wrote, which never lets it start early
#include "device.cuh"
#include "host.h"

constexpr int kN = 512, kThreads = 128;

template <int MUTANT>
__global__ void first(const float* x, float* y) {
  griddep_wait();
  UNLESS(6)
    if (MUTANT != 8 || blockIdx.x == 0) griddep_launch();
  int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  y[i] = x[i] + 1.0f;  // @1 @2 @5 @6 @7 @8
}
template <int MUTANT>
__global__ void middle(const float* y, float* z, float* x) {
  int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (MUTANT == 3 && i >= kN) return;  // @3
  UNLESS(9) griddep_launch();
  float early = 0;
  ONLY(2) early = static_cast<const volatile float*>(y)[i % kN];  // @2
  ONLY(4)
    if (i < kN) x[i] = 0;  // @4
  UNLESS(1)
    UNLESS(6)
      UNLESS(8)
        if (MUTANT != 5 || threadIdx.x < 32) griddep_wait();
  if (i >= kN) return;
  z[i] = 2.0f * PICK(2, y[i], early);  // @1 @5 @6 @8
  UNLESS(4) x[i] = 0;                  // @1
}  // @1 @3
template <int MUTANT>
__global__ void last(const float* y, const float* z, float* x) {
  int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  float first = 0;
  ONLY(7) first = static_cast<const volatile float*>(y)[i];  // @7
  ONLY(9) first = static_cast<const volatile float*>(z)[i];  // @9
  griddep_wait();
  x[i] += z[i] + 0 * first;
}

template <int MUTANT>
int run() {
  auto x = small_floats(kN);
  Buffer<float> dx(x), dy(kN), dz(kN);
  Launch chained{.grid = kN / kThreads, .block = kThreads, .chained = true};
  Launch wider{.grid = kN / kThreads + 2, .block = kThreads, .chained = true};
  launch(first<MUTANT>, chained, dx.data, dy.data);
  launch(middle<MUTANT>, wider, dy.data, dz.data, dx.data);
  launch(last<MUTANT>, chained, dy.data, dz.data, dx.data);
  CHECK(cudaDeviceSynchronize());
  for (auto& value : x) value = 2.0f * (value + 1.0f);
  return verdict(dx.download(), x);
}
MAIN(9)
