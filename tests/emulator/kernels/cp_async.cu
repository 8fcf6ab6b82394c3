// Sums of mirrored blocks over a ring of cp.async stages: once with wait_group and bar.sync, once
// with an mbarrier per stage that the copies arrive on.
//
// mutant | report | what
// 1 | shared-in-flight uninitialised-shared-read | no wait_group
// 2 | shared-in-flight uninitialised-shared-read | wait_group leaves the stage about to be read pending
// 3 | shared-in-flight shared-race uninitialised-shared-read | other threads' copies are not waited for
// 4 | shared-in-flight shared-race | a stage is filled before the barrier that ends its reading
// 5 | global-out-of-bounds | the last copy runs past the input
// 6 | misaligned | the copies' source is four bytes off
// 7 | shared-in-flight uninitialised-shared-read | the copies are never committed
// 8 | deadlock | the copies do not arrive on the mbarrier
// 9 | shared-in-flight uninitialised-shared-read | plain arrive in place of the copies' own
// 10 | deadlock | the mbarrier counts one thread more than arrive
// 11 | shared-in-flight shared-race uninitialised-shared-read mbarrier | the mbarrier counts half of the threads
#include "device.cuh"
#include "host.h"

constexpr int kThreads = 64, kStages = 3, kBlocks = 7, kBlock = kThreads * 4;

template <int MUTANT>
__global__ void with_groups(const float* x, float* y) {
  __shared__ __align__(16) float ring[kStages][kBlock];
  const float* source = x + PICK(6, 0, 1);
  int mine = static_cast<int>(threadIdx.x) * 4;
  auto fill = [&](int block) {
    int at = block * kBlock + mine + PICK(5, 0, block + 1 == kBlocks ? kThreads : 0);
    if (block < kBlocks)
      cp_async_16(&ring[block % kStages][mine], source + at);  // @1 @2 @3 @4 @5 @6 @7
    UNLESS(7) cp_async_commit();
  };
  for (int block = 0; block + 1 < kStages; ++block) fill(block);
  float sum = 0;
  for (int block = 0; block < kBlocks; ++block) {
    UNLESS(1) cp_async_wait<PICK(2, kStages - 2, kStages - 1)>();
    ONLY(4) fill(block + kStages - 1);
    UNLESS(3) __syncthreads();
    UNLESS(4) fill(block + kStages - 1);
    for (int i = 0; i < 4; ++i)
      sum += ring[block % kStages][kBlock - 1 - mine - i];  // @1 @2 @3 @4 @7
  }
  y[threadIdx.x] = sum;
}

template <int MUTANT>
__global__ void with_mbarriers(const float* x, float* y) {
  __shared__ __align__(16) float ring[kStages][kBlock];
  __shared__ uint64_t full[kStages];
  if (threadIdx.x == 0)
    for (int s = 0; s < kStages; ++s)
      mbar_init(&full[s], kThreads + PICK(10, PICK(11, 0, -kThreads / 2), 1));
  __syncthreads();
  int mine = static_cast<int>(threadIdx.x) * 4;
  auto fill = [&](int block) {
    if (block >= kBlocks) return;
    cp_async_16(&ring[block % kStages][mine], x + block * kBlock + mine);  // @9 @11
    if (MUTANT == 9) {
      mbar_arrive(&full[block % kStages]);
    } else {
      UNLESS(8) cp_async_arrive(&full[block % kStages]);  // @11
    }
  };
  for (int block = 0; block + 1 < kStages; ++block) fill(block);
  float sum = 0;
  for (int block = 0; block < kBlocks; ++block) {
    mbar_wait(&full[block % kStages], block / kStages % 2);                           // @8 @10
    for (int i = 0; i < 4; ++i) sum += ring[block % kStages][kBlock - 1 - mine - i];  // @9 @11
    __syncthreads();
    fill(block + kStages - 1);
  }
  y[threadIdx.x] = sum;
}

template <int MUTANT>
int run() {
  auto x = small_floats(kBlocks * kBlock);
  Buffer<float> dx(x), dy(kThreads);
  std::vector<float> want(kThreads);
  for (int i = 0; i < kBlocks * kBlock; ++i) want[kThreads - 1 - i % kBlock / 4] += x[i];
  launch(with_groups<MUTANT>, {.grid = 1, .block = kThreads}, dx.data, dy.data);
  CHECK(cudaDeviceSynchronize());
  if (int failed = verdict(dy.download(), want)) return failed;
  dy.zero();
  launch(with_mbarriers<MUTANT>, {.grid = 1, .block = kThreads}, dx.data, dy.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dy.download(), want);
}
MAIN(11)
