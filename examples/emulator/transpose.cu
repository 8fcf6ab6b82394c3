// A 64x64 matrix transposed through tiles of 32x32 in shared memory. PADDING=0 puts a column of a
// tile into one bank.
#include <cstdio>

#ifndef PADDING
#define PADDING 1
#endif

constexpr int kSize = 64, kTile = 32;

__global__ void transpose(const float* in, float* out) {
  __shared__ float tile[kTile][kTile + PADDING];
  int x = blockIdx.x * kTile, y = blockIdx.y * kTile, column = threadIdx.x;
  for (int row = threadIdx.y; row < kTile; row += blockDim.y)
    tile[row][column] = in[(y + row) * kSize + x + column];
  __syncthreads();
  for (int row = threadIdx.y; row < kTile; row += blockDim.y)
    out[(x + row) * kSize + y + column] = tile[column][row];
}

int main() {
  float *in, *out;
  for (float** p : {&in, &out}) cudaMallocManaged(p, kSize * kSize * sizeof(float));
  for (int i = 0; i < kSize * kSize; ++i) in[i] = i;
  transpose<<<dim3(kSize / kTile, kSize / kTile), dim3(kTile, 8)>>>(in, out);
  if (cudaError_t error = cudaDeviceSynchronize()) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 1;
  }
  int wrong = 0;
  for (int i = 0; i < kSize * kSize; ++i) wrong += out[i] != (i % kSize) * kSize + i / kSize;
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
