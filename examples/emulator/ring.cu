// Chunks of memory summed up through a ring of two buffers, which bulk copies fill while the other
// one is read. An mbarrier says when a copy has landed.
//   MISTAKE=1: a chunk is read before it has landed
//   MISTAKE=2: a buffer is filled again while other warps may still read it
//   MISTAKE=3: no fence shows the new mbarriers to the copies
#include <cstdint>
#include <cstdio>

#ifndef MISTAKE
#define MISTAKE 0
#endif

constexpr int kThreads = 128, kChunks = 6;
constexpr uint32_t kBytes = kThreads * sizeof(float);

__device__ uint32_t shared(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ void init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared(barrier)), "r"(arrivals));
}

// The copy adds kBytes to the barrier when it lands; this arrival is the only one.
__device__ void fetch(float* to, const float* from, uint64_t* barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared(barrier)),
               "r"(kBytes));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared(to)),
      "l"(from), "r"(kBytes), "r"(shared(barrier))
      : "memory");
}

// try_wait may give up before the phase is over.
__device__ void wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared(barrier)), "r"(parity)
        : "memory");
}

__global__ void sum_chunks(const float* in, float* out) {
  __shared__ alignas(128) float ring[2][kThreads];
  __shared__ uint64_t full[2];
  if (threadIdx.x == 0) {
    init(&full[0], 1);
    init(&full[1], 1);
    if (MISTAKE != 3) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int i = 0; i < 2; ++i) fetch(ring[i], in + i * kThreads, &full[i]);
  }
  __syncthreads();  // the mbarriers are there
  float sum = 0;
  for (int i = 0; i < kChunks; ++i) {
    if (MISTAKE != 1) wait(&full[i % 2], i / 2 % 2);
    sum += ring[i % 2][threadIdx.x];
    if (MISTAKE != 2) __syncthreads();  // all have read it
    if (threadIdx.x == 0 && i + 2 < kChunks)
      fetch(ring[i % 2], in + (i + 2) * kThreads, &full[i % 2]);
  }
  out[threadIdx.x] = sum;
}

int main() {
  float *in, *out;
  cudaMallocManaged(&in, kChunks * kBytes);
  cudaMallocManaged(&out, kBytes);
  for (int i = 0; i < kChunks * kThreads; ++i) in[i] = i % kThreads;
  sum_chunks<<<1, kThreads>>>(in, out);
  if (cudaError_t error = cudaDeviceSynchronize()) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 1;
  }
  int wrong = 0;
  for (int i = 0; i < kThreads; ++i) wrong += out[i] != kChunks * i;
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
