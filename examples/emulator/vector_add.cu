// c = a + b, one element a thread. MISTAKE=1: the last block runs past the end.
#include <cstdio>
#include <cstdlib>

#ifndef MISTAKE
#define MISTAKE 0
#endif

__global__ void vector_add(const float* a, const float* b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (MISTAKE == 1 || i < n) c[i] = a[i] + b[i];
}

int main(int argc, char** argv) {
  int n = argc > 1 ? std::atoi(argv[1]) : 1000;
  float *a, *b, *c;
  for (float** p : {&a, &b, &c}) cudaMallocManaged(p, n * sizeof(float));
  for (int i = 0; i < n; ++i) a[i] = i, b[i] = 2 * i;
  vector_add<<<(n + 255) / 256, 256>>>(a, b, c, n);
  if (cudaError_t error = cudaDeviceSynchronize()) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 1;
  }
  int wrong = 0;
  for (int i = 0; i < n; ++i) wrong += c[i] != 3 * i;
  std::printf("%d of %d wrong\n", wrong, n);
  return wrong != 0;
}
