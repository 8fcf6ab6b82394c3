// The sum of 256 numbers as a tree in shared memory. MISTAKE=1: a level begins before all threads
// have ended the one before.
#include <cstdio>

#ifndef MISTAKE
#define MISTAKE 0
#endif

constexpr int kThreads = 256;

__global__ void reduce(const float* in, float* out) {
  __shared__ float part[kThreads];
  part[threadIdx.x] = in[threadIdx.x];
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (MISTAKE != 1) __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *out = part[0];
}

int main() {
  float *in, *out;
  cudaMallocManaged(&in, kThreads * sizeof(float));
  cudaMallocManaged(&out, sizeof(float));
  for (int i = 0; i < kThreads; ++i) in[i] = 1;
  reduce<<<1, kThreads>>>(in, out);
  if (cudaError_t error = cudaDeviceSynchronize()) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 1;
  }
  std::printf("sum %g\n", *out);
  return *out != kThreads;
}
