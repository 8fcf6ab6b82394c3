// One warpgroup's product of bf16 tiles: D[64, 16] = A[64, 64] B[16, 64]^T, four wgmma of 16 columns
// of A and B each.
//   MISTAKE=1: the tensor cores read shared memory before ordinary stores are visible to them
//   MISTAKE=2: the result is used before the products are complete
#include <cuda_bf16.h>

#include <cstdint>
#include <cstdio>

#ifndef MISTAKE
#define MISTAKE 0
#endif

constexpr int kM = 64, kN = 16, kK = 64, kThreads = 128;

// Without a swizzle an operand is made of core matrices, 8 rows of 8 elements in 128 bytes on end.
// Here they lie along K first: 128 bytes to the next one in K, kGroup to the next 8 rows.
constexpr uint64_t kCore = 128, kGroup = kCore * (kK / 8);

__device__ int place(int row, int k) {
  return row / 8 * (kGroup / 2) + k / 8 * (kCore / 2) + row % 8 * 8 + k % 8;
}

__device__ uint64_t descriptor(const __nv_bfloat16* tile) {
  uint64_t address = __cvta_generic_to_shared(tile);
  return address >> 4 | (kCore >> 4) << 16 | (kGroup >> 4) << 32;
}

__device__ void multiply(float (&d)[8], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
      "%8, %9, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7])
      : "l"(a), "l"(b));
}

__global__ void product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d) {
  __shared__ alignas(128) __nv_bfloat16 tile_a[kM * kK], tile_b[kN * kK];
  for (int i = threadIdx.x; i < kM * kK; i += kThreads) tile_a[place(i / kK, i % kK)] = a[i];
  for (int i = threadIdx.x; i < kN * kK; i += kThreads) tile_b[place(i / kK, i % kK)] = b[i];
  if (MISTAKE != 1) asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();

  float sum[8] = {};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  for (int k = 0; k < kK; k += 16)
    multiply(sum, descriptor(tile_a + place(0, k)), descriptor(tile_b + place(0, k)));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  if (MISTAKE != 2) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");

  // A warp has 16 rows; of each 8 columns a thread has two, in two rows that are 8 apart.
  int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int i = 0; i < 8; ++i) {
    int r = row + i / 2 % 2 * 8, c = column + i / 4 * 8 + i % 2;
    d[r * kN + c] = sum[i];
  }
}

int main() {
  __nv_bfloat16 *a, *b;
  float* d;
  cudaMallocManaged(&a, kM * kK * sizeof(*a));
  cudaMallocManaged(&b, kN * kK * sizeof(*b));
  cudaMallocManaged(&d, kM * kN * sizeof(*d));
  for (int i = 0; i < kM * kK; ++i) a[i] = __float2bfloat16(i % 7 - 3);
  for (int i = 0; i < kN * kK; ++i) b[i] = __float2bfloat16(i % 5 - 2);
  product<<<1, kThreads>>>(a, b, d);
  if (cudaError_t error = cudaDeviceSynchronize()) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 1;
  }
  int wrong = 0;
  for (int i = 0; i < kM * kN; ++i) {
    float sum = 0;
    for (int k = 0; k < kK; ++k)
      sum += __bfloat162float(a[i / kN * kK + k]) * __bfloat162float(b[i % kN * kK + k]);
    wrong += d[i] != sum;
  }
  std::printf("%d of %d wrong\n", wrong, kM * kN);
  return wrong != 0;
}
