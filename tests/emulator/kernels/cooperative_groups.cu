// cooperative_groups: the grid's barrier, tiles smaller and larger than a warp, coalesced and
// labeled groups, and asynchronous copies.
//
// mutant | report | what
// 1 | trap | a grid that synchronises, launched as an ordinary kernel
// 2 | stale-global-read | no grid.sync() between writing and reading
// 3 | shared-in-flight shared-race uninitialised-shared-read | no wait for the group's copy
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/pipeline>

#include "device.cuh"
#include "host.h"

namespace cg = cooperative_groups;
#pragma nv_diag_suppress 20054  // shared objects of libcu++ are initialised by their users

constexpr int kBlock = 256, kGrid = 4, kCount = kBlock * kGrid;

template <int MUTANT>
__global__ void rotate(int* data, int* out) {
  auto grid = cg::this_grid();
  int rank = static_cast<int>(grid.thread_rank());
  data[rank] = rank * 3;                       // @2
  UNLESS(2) grid.sync();                       // @1
  int v = data[(rank + kBlock + 5) % kCount];  // @2
  UNLESS(2) grid.sync();
  data[rank] = v + 1;
  grid.sync();  // @1
  out[rank] = data[(rank + 7 * kBlock) % kCount];
}

// One number per thread from every kind of group.
template <int MUTANT>
__global__ void groups(const int* in, int* out) {
  auto block = cg::this_thread_block();
  __shared__ int staged[kBlock];
  cg::memcpy_async(block, staged, in + blockIdx.x * kBlock, sizeof(int) * kBlock);
  UNLESS(3) cg::wait(block);
  int rank = static_cast<int>(block.thread_rank());
  int v = staged[rank ^ 1];  // @3
  auto tile = cg::tiled_partition<8>(block);
  int sum = cg::reduce(tile, v, cg::plus<int>());
  auto large = cg::tiled_partition<128>(block);
  // All lanes of a warp store its sum: l4k-emu: ignore(same-value-race)
  sum += 1000 * cg::reduce(large, v, cg::greater<int>());
  if (rank % 3 == 0) {
    auto active = cg::coalesced_threads();
    sum += 10000 * static_cast<int>(active.size()) + static_cast<int>(active.thread_rank());
  }
  auto warp = cg::tiled_partition<32>(block);
  auto label = cg::labeled_partition(warp, rank % 4);
  sum += 100000 * cg::reduce(label, v, cg::less<int>());
  sum += cg::inclusive_scan(tile, v);
  out[block.group_index().x * kBlock + rank] = sum;
}

// libcu++: a pipeline of copies, a barrier, an atomic.
template <int MUTANT>
__global__ void pipeline(const int* in, int* out) {
  auto block = cg::this_thread_block();
  constexpr int kStages = 2;
  __shared__ int buffer[kStages][kBlock];
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, kStages> state;
  __shared__ cuda::barrier<cuda::thread_scope_block> arrived;
  if (block.thread_rank() == 0) init(&arrived, block.size());
  block.sync();
  auto pipe = cuda::make_pipeline(block, &state);
  for (int i = 0; i < kStages; ++i) {
    pipe.producer_acquire();
    cuda::memcpy_async(block, buffer[i], in + i * kBlock, sizeof(int) * kBlock, pipe);
    pipe.producer_commit();
  }
  int sum = 0;
  for (int i = 0; i < kGrid; ++i) {
    pipe.consumer_wait();
    sum += buffer[i % kStages][kBlock - 1 - threadIdx.x];
    pipe.consumer_release();
    if (i + kStages >= kGrid) continue;
    pipe.producer_acquire();
    cuda::memcpy_async(block, buffer[i % kStages], in + (i + kStages) * kBlock,
                       sizeof(int) * kBlock, pipe);
    pipe.producer_commit();
  }
  cuda::atomic_ref<int, cuda::thread_scope_device> total(out[kBlock]);
  total.fetch_add(sum);
  arrived.arrive_and_wait();
  out[threadIdx.x] = sum;
}

std::vector<int> expected_groups(const std::vector<int>& in) {
  std::vector<int> want(kCount);
  for (int i = 0; i < kCount; ++i) {
    auto v = [&](int at) { return in[at ^ 1]; };
    int sum = 0, most = v(i / 128 * 128), least = 1 << 30;
    for (int k = i / 8 * 8; k < i / 8 * 8 + 8; ++k) sum += v(k) + (k <= i ? v(k) : 0);
    for (int k = i / 128 * 128; k < i / 128 * 128 + 128; ++k) most = std::max(most, v(k));
    for (int k = i / 32 * 32; k < i / 32 * 32 + 32; ++k)
      if (k % 4 == i % 4) least = std::min(least, v(k));
    if (i % kBlock % 3 == 0) {
      int size = 0, rank = 0, start = i / 32 * 32;
      for (int k = start; k < start + 32; ++k)
        if (k % kBlock % 3 == 0) ++size, rank += k < i;
      sum += 10000 * size + rank;
    }
    want[i] = sum + 1000 * most + 100000 * least;
  }
  return want;
}

template <int MUTANT>
int run() {
  std::vector<int> in(kCount), rotated(kCount), piped(kBlock + 1);
  for (int i = 0; i < kCount; ++i) {
    in[i] = small_int(i) + 4;
    rotated[i] = (((i + 7 * kBlock) % kCount + kBlock + 5) % kCount) * 3 + 1;
  }
  for (int i = 0; i < kBlock; ++i)
    for (int k = 0; k < kGrid; ++k) {
      piped[i] += in[k * kBlock + kBlock - 1 - i];
      piped[kBlock] += in[k * kBlock + i];
    }
  Buffer<int> data(kCount), out(kCount), input(in);
  void* args[] = {&data.data, &out.data};
  if (MUTANT == 1) CHECK(cudaLaunchKernel(rotate<MUTANT>, kGrid, kBlock, args, 0, nullptr));
  else CHECK(cudaLaunchCooperativeKernel(rotate<MUTANT>, kGrid, kBlock, args, 0, nullptr));
  CHECK(cudaDeviceSynchronize());
  if (int failed = verdict(out.download(), rotated)) return failed;
  launch(groups<MUTANT>, {.grid = kGrid, .block = kBlock}, input.data, out.data);
  CHECK(cudaDeviceSynchronize());
  if (int failed = verdict(out.download(), expected_groups(in))) return failed;
  out.zero();
  launch(pipeline<MUTANT>, {.grid = 1, .block = kBlock}, input.data, out.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(out.download(), piped);
}
MAIN(3)
