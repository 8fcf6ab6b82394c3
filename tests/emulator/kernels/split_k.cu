// Every block adds up a slice; the last one to finish adds the slices' sums in order.
//
// mutant | report | what
// 1 | stale-global-read | no __threadfence between the partial sums and the counter
// 2 | stale-global-read | a fence of block scope where the reader is another block
// 3 | stale-global-read | no barrier between the block's partial sums and the thread that counts
// 4 | nc-read-of-written | the last block reads the partial sums with ld.global.nc
// 5 | shared-race uninitialised-shared-read | no barrier between the flag and its readers
// 6 | stale-global-read | the counter is a plain increment
// 7 | global-out-of-bounds | the last block reads one slice too many
// 8 | acquire-fence-missing | no fence between the counter and the other blocks' partial sums
#include "device.cuh"
#include "host.h"

constexpr int kSlices = 6, kThreads = 64, kLength = 512;

template <int MUTANT>
__global__ void sum(const float* x, float* partial, float* y, unsigned* finished) {
  __shared__ unsigned is_last;
  int slice = static_cast<int>(blockIdx.x), column = static_cast<int>(threadIdx.x);
  float total = 0;
  for (int i = 0; i < kLength; ++i) total += x[(slice * kLength + i) * kThreads + column];
  partial[slice * kThreads + column] = total;  // @1 @2 @3
  UNLESS(3) __syncthreads();
  if (threadIdx.x == 0) {
    if (MUTANT == 2) __threadfence_block();
    else UNLESS(1) __threadfence();
    unsigned before = MUTANT == 6 ? (*finished)++ : atomicAdd(finished, 1u);  // @6
    is_last = before == kSlices - 1;                                          // @5
  }
  UNLESS(5) __syncthreads();
  if (!is_last) return;  // @5
  UNLESS(8) __threadfence();
  float result = 0;
  for (int s = 0; s < kSlices + PICK(7, 0, 1); ++s) {
    const float* from = partial + s * kThreads + column;
    float part;
    if (MUTANT == 4) asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(part) : "l"(from));  // @4
    else part = *from;  // @1 @2 @3 @7 @8
    result += part;
  }
  y[column] = result;
}

template <int MUTANT>
int run() {
  auto x = small_floats(kSlices * kLength * kThreads);
  Buffer<float> dx(x), dpartial(kSlices * kThreads), dy(kThreads);
  Buffer<unsigned> dfinished(1);
  dpartial.zero();
  dfinished.zero();
  std::vector<float> want(kThreads);
  for (int i = 0; i < kSlices * kLength * kThreads; ++i) want[i % kThreads] += x[i];
  launch(sum<MUTANT>, {.grid = kSlices, .block = kThreads}, dx.data, dpartial.data, dy.data,
         dfinished.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dy.download(), want);
}
MAIN(8)
