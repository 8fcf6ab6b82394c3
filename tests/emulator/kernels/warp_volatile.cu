// A reduction through volatile shared memory whose last steps one warp does, and a volatile flag.
//
// mutant | report | what
// 1 | volatile-race | the last steps rely on the lanes of a warp being in step
// 2 | volatile-race | a lane overwrites what its neighbour has read, likewise
// 3 | shared-race | the same steps without volatile
// 4 | shared-race | the flag is raised before the result is stored
#include "device.cuh"
#include "host.h"

constexpr int kThreads = 128;

template <int MUTANT>
__global__ void reduce(const float* x, float* y) {
  __shared__ float data[kThreads];
  __shared__ volatile int ready;
  __shared__ int arrivals;
  __shared__ float total;
  int tid = threadIdx.x;
  if (tid == 0) ready = 0, arrivals = 0;
  data[tid] = x[blockIdx.x * kThreads + tid];
  __syncthreads();
  atomicAdd(&arrivals, 1);
  if (tid < 64) data[tid] += data[tid + 64];
  __syncthreads();
  if (tid < 32) {
    volatile float* v = data;
    v[tid] = v[tid] + v[tid + 32];
    UNLESS(1) __syncwarp();
    for (int n = 16; n; n /= 2) {
      float sum;
      ONLY(3) sum = data[tid] + data[tid + n];  // @3
      else sum = v[tid] + v[tid + n];           // @1 @2
      UNLESS(1)
        UNLESS(2) __syncwarp();
      ONLY(3) data[tid] = sum;  // @3
      else v[tid] = sum;        // @1 @2
      UNLESS(1)
        UNLESS(3) __syncwarp();
    }
    if (tid == 0) {
      ONLY(4) ready = 1;  // @4
      total = v[0];       // @4
      __threadfence_block();
      UNLESS(4) ready = 1;
    }
  } else if (tid / 32 == 1) {  // another warp polls, all its lanes
    while (!ready) {
    }
    if (tid == 32) y[blockIdx.x] = total;  // @4
  }
  __syncthreads();
  if (tid == 0 && arrivals != kThreads) y[blockIdx.x] = -1;
}

template <int MUTANT>
int run() {
  auto x = small_floats(2 * kThreads);
  std::vector<float> want(2);
  for (int i = 0; i < 2 * kThreads; ++i) want[i / kThreads] += x[i];
  Buffer<float> dx(x), dy(2);
  launch(reduce<MUTANT>, {.grid = 2, .block = kThreads}, dx.data, dy.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dy.download(), want);
}
MAIN(4)
