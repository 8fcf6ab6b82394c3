// A step as an engine makes it: a plan, a fence, layers that let each other start early. Behind the fence a
// layer reads the plan before it waits, however many launches still run between the two.
//
// mutant | report | what
// 1 | dependency-race | the fence lets the layers start before it has waited
// 2 | dependency-race | nothing stands between the plan and the layers
// 3 | dependency-race | the last layer reads what the layer before wrote, before it waits
// 4 | dependency-race | the last layer reads what the first layer wrote, before it waits
// 5 | dependency-race | the last layer overwrites what the layer before reads, before it waits
// 6 | dependency-race | the next step's plan is made before it waits, while a layer may read this one
#include "device.cuh"
#include "host.h"

constexpr int kN = 512, kThreads = 128, kCtas = kN / kThreads;

template <int MUTANT>
__global__ void plan(float* y, float value) {
  UNLESS(6) griddep_wait();
  griddep_launch();
  int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  y[i] = value;  // @6
  ONLY(6) griddep_wait();
}
template <int MUTANT>
__global__ void fence(float* out) {
  ONLY(1) griddep_launch();
  griddep_wait();
  griddep_launch();
  out[blockIdx.x * kThreads + threadIdx.x] = 0;
}
template <int MUTANT>
__global__ void layer(const float* in, float* out) {
  griddep_launch();
  griddep_wait();
  int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  out[i] = in[i] + 1.0f;  // @5
}
template <int MUTANT>
__global__ void last(const float* y, float* first, float* second, float* out) {
  griddep_launch();
  int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  float planned = static_cast<const volatile float*>(y)[i];  // @1 @2 @6
  float early = 0;
  ONLY(3) early = static_cast<const volatile float*>(second)[i];  // @3
  ONLY(4) early = static_cast<const volatile float*>(first)[i];   // @4
  ONLY(5) first[i] = 0;                                           // @5
  griddep_wait();
  out[i] = planned + second[i] + 0 * early;
}

template <int MUTANT>
int run() {
  Buffer<float> y(kN), start(kN), first(kN), second(kN), out(kN);
  start.zero();
  Launch chained{.grid = kCtas, .block = kThreads, .chained = true};
  for (float value : {5.0f, 7.0f}) {
    launch(plan<MUTANT>, chained, y.data, value);
    UNLESS(2) launch(fence<MUTANT>, chained, start.data);
    launch(layer<MUTANT>, chained, start.data, first.data);
    launch(layer<MUTANT>, chained, first.data, second.data);
    launch(last<MUTANT>, chained, y.data, first.data, second.data, out.data);
  }
  CHECK(cudaDeviceSynchronize());
  return verdict(out.download(), std::vector<float>(kN, 9.0f));
}
MAIN(6)
