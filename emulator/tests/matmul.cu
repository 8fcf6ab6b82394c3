// How fast ordinary code runs: a naive float32 product, every load and check included. Fails below five
// million warp instructions a second of CPU time; a desktop core does four times that.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "l4k_emulator.h"

__global__ void multiply(const float* a, const float* b, float* c, int n) {
  int row = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
  int col = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += a[row * n + i] * b[i * n + col];
  c[row * n + col] = sum;
}

int main() {
  constexpr int n = 256;
  constexpr double kGoal = 5e6;
  std::vector<float> a(n * n), b(n * n), c(n * n);
  for (int i = 0; i < n * n; ++i) a[i] = static_cast<float>(i % 13 - 6), b[i] = i % 7 < 3;
  float* d[3];
  for (float*& p : d) cudaMalloc(&p, n * n * sizeof(float));
  cudaMemcpy(d[0], a.data(), n * n * sizeof(float), cudaMemcpyHostToDevice);
  cudaMemcpy(d[1], b.data(), n * n * sizeof(float), cudaMemcpyHostToDevice);
  std::clock_t begin = std::clock();
  multiply<<<dim3(n / 16, n / 16), dim3(16, 16)>>>(d[0], d[1], d[2], n);
  cudaError_t error = cudaDeviceSynchronize();
  double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  cudaMemcpy(c.data(), d[2], n * n * sizeof(float), cudaMemcpyDeviceToHost);
  int wrong = 0;
  for (int row = 0; row < n; ++row)
    for (int col = 0; col < n; ++col) {
      float sum = 0;
      for (int i = 0; i < n; ++i) sum += a[row * n + i] * b[i * n + col];
      wrong += c[row * n + col] != sum;
    }
  const char* issued = std::strstr(l4k_emu_counters(), " issued=");
  double rate = issued ? std::atof(issued + 8) / seconds : 0;
  std::printf("%s, %d wrong, %.1f million warp instructions a second\n", cudaGetErrorString(error),
              wrong, rate / 1e6);
  return error != cudaSuccess || wrong || rate < kGoal;
}
