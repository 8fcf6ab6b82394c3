// Row sums: shuffle inside a warp, shared memory and bar.sync across the warps of the block.
//
// mutant | report | what
// 1 | shared-race uninitialised-shared-read | no barrier between the partial sums and their reader
// 2 | shared-race | no barrier before the partial sums of the next row overwrite them
// 3 | missing-lane | a shuffle whose mask lacks a lane that takes part
// 4 | missing-lane divergent-barrier | a shuffle whose mask names a lane that never comes
// 5 | barrier-mismatch divergent-barrier deadlock | bar.sync counts one warp too few
// 6 | barrier-mismatch divergent-barrier missing-lane deadlock | bar.sync inside a branch that half a warp takes
// 7 | shared-out-of-bounds | a partial sum is written past the array
// 8 | uninitialised-shared-read | the reader takes twice as many partial sums as were written
// 9 | deadlock barrier-mismatch divergent-barrier | one warp waits at another barrier than the rest
// 10 | shared-race | sums of warps that end, read with no barrier
#include "device.cuh"
#include "host.h"

constexpr int kThreads = 256, kWarps = kThreads / 32, kRows = 6, kColumns = 1024;

DEVICE float warp_sum(float x, unsigned mask) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(mask, x, offset);  // @3 @4
  return x;
}

template <int MUTANT>
__global__ void row_sums(const float* x, float* sums) {
  __shared__ float partial[PICK(8, kWarps, 2 * kWarps)];
  int warp = threadIdx.x / 32;
  for (int row = static_cast<int>(blockIdx.x); row < kRows; row += static_cast<int>(gridDim.x)) {
    float sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < kColumns; i += kThreads)
      sum += x[row * kColumns + i];
    bool shuffles = MUTANT != 4 || lane_id() < 31;
    if (shuffles) sum = warp_sum(sum, PICK(3, 0xffffffffu, 0x7fffffffu));  // @3 @4
    if (lane_id() == 0) partial[PICK(7, warp, warp + 1)] = sum;            // @1 @2 @7
    int id = PICK(9, 0, warp == 3 ? 1 : 0);
    bool waits = MUTANT != 6 || lane_id() < 16;
    UNLESS(1)
      if (waits) named_sync(id, PICK(5, kThreads, kThreads - 32));  // @4 @5 @6 @9
    if (warp == 0) {
      float total = lane_id() < PICK(8, kWarps, 2 * kWarps) ? partial[lane_id()] : 0;  // @1 @2 @8
      total = warp_sum(total, 0xffffffffu);
      if (lane_id() == 0) sums[row] = total;
    }
    UNLESS(2) __syncthreads();  // @5 @6 @9
  }
}

// The last warps end before the barrier, which waits for that.
template <int MUTANT>
__global__ void block_sum(const float* x, float* sum) {
  __shared__ float partial[kWarps];
  int warp = threadIdx.x / 32;
  if (lane_id() == 0) partial[warp] = 0;
  __syncwarp();
  atomicAdd(&partial[warp], x[threadIdx.x]);  // @10
  if (warp >= kWarps / 2) return;
  UNLESS(10) __syncthreads();
  float total = 0;
  for (float p : partial) total += p;  // @10
  if (threadIdx.x == 0) *sum = total;
}

template <int MUTANT>
int run() {
  auto x = small_floats(kRows * kColumns);
  Buffer<float> dx(x), dsums(kRows), dsum(1);
  std::vector<float> want(kRows);
  for (int i = 0; i < kRows * kColumns; ++i) want[i / kColumns] += x[i];
  launch(row_sums<MUTANT>, {.grid = 2, .block = kThreads}, dx.data, dsums.data);
  launch(block_sum<MUTANT>, {.grid = 1, .block = kThreads}, dx.data, dsum.data);
  CHECK(cudaDeviceSynchronize());
  float block = 0;
  for (int i = 0; i < kThreads; ++i) block += x[i];
  return verdict(dsums.download(), want) | verdict(dsum.download(), {block});
}
MAIN(10)
