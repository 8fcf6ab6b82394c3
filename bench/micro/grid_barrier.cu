// A barrier of the whole grid in software: every CTA (one a SM, a cooperative launch) adds to a
// word in L2 with release, and one thread polls it with acquire.
//
// Bound: an atomic and a load that follows it are two round trips to L2, no less than 2 x 260
// cycles; published for an H200: 1.05 to 1.25 us.
// Loop: one RED and one polling LD (twice: the slow path counts its time), two BAR; nothing else.
// Disbelieve: under 0.3 us or 500 cycles (somebody did not wait), over 10 us.
#include "micro.h"

namespace {

using namespace micro;

__device__ __forceinline__ void arrive(uint32_t* word) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(word) : "memory");
}

__device__ __forceinline__ uint32_t poll(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ __forceinline__ void grid_barrier(uint32_t* word, uint32_t target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive(word);
    if (poll(word) < target) {
      Patience patience;
      while (poll(word) < target) patience.check();
    }
  }
  __syncthreads();
}

// kPasses: a number goes from each CTA to the next one at every barrier.
template <bool kPasses>
__global__ __launch_bounds__(128) void rounds_of(int rounds, uint32_t* word, uint32_t* numbers,
                                                 int64_t* elapsed) {
  const int next = (blockIdx.x + 1) % gridDim.x, ctas = gridDim.x;
  const int64_t begin = cycles();
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    if constexpr (kPasses) {
      uint32_t *from = numbers + round % 2 * ctas, *to = numbers + (round + 1) % 2 * ctas;
      if (threadIdx.x == 0) to[next] = from[blockIdx.x] + 1;
    }
    grid_barrier(word, uint32_t(round + 1) * ctas);
  }
  if (threadIdx.x == 0) elapsed[blockIdx.x] = cycles() - begin;
}

template <bool kPasses>
double us(int grid, int rounds, Buffer<uint32_t>& word, Buffer<uint32_t>& numbers,
          Buffer<int64_t>& elapsed, int repeats) {
  uint32_t *a = word.data, *b = numbers.data;
  int64_t* c = elapsed.data;
  void* arguments[] = {&rounds, &a, &b, &c};
  return event_us(repeats, [&] {
    MICRO_CHECK(cudaMemsetAsync(a, 0, sizeof(uint32_t), stream()));
    MICRO_CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(rounds_of<kPasses>), dim3(grid),
                                            dim3(128), arguments, 0, stream()));
  });
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  const int grid = l4k::sm_count(), few = small ? 2 : 100, many = small ? 6 : 1100;
  Buffer<uint32_t> word(1), numbers(2 * grid);
  Buffer<int64_t> elapsed(grid);
  us<true>(grid, 6, word, numbers, elapsed, 0);
  const std::vector<uint32_t> got = numbers.host();
  for (int i = 0; i < grid; ++i) expect(got[i] == 6, "numbers passed round the grid");
  const int repeats = small ? 1 : 5;
  const double less = us<false>(grid, few, word, numbers, elapsed, repeats);
  const double more = us<false>(grid, many, word, numbers, elapsed, repeats);
  print("grid_barrier_us", (more - less) / (many - few), "us");
  print("grid_barrier", double(median(elapsed.host())) / many, "cycles");
}
