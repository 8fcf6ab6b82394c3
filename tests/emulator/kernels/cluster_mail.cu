// Two blocks send each other their numbers through distributed shared memory and an mbarrier, which
// ends as plain memory; then block 0 sends both a bulk copy.
//
// mutant | report | what
// 1 | cluster-not-started | a block is written to before it is known to have started
// 2 | shared-race uninitialised-shared-read | the remote arrival comes before the remote store
// 3 | shared-race uninitialised-shared-read deadlock | the mbarrier counts half of the letters
// 4 | mbarrier-overwritten | the mbarrier becomes plain memory without an mbarrier.inval
// 5 | shared-race mbarrier | mbarrier.inval while other warps may still test the mbarrier
// 6 | uninitialised-shared-read | what is left of an mbarrier after its end is read
// 7 | cluster-exited shared-in-flight | block 1 leaves before block 0's copy into it has landed
// 8 | cluster-exited | block 0 leaves while the other may still write to it
// 9 | mbarrier-overwritten | the bulk copy lands on a live mbarrier
// 10 | mbarrier-count | an arrival of zero threads
// 11 | bad-operand | a wait for the other block's mbarrier
// 12 | mbarrier-initialised-again | two lanes initialise an mbarrier to the same count
// 13 | mbarrier-initialised-again | two warps do
// 14 | mbarrier-overwritten | ... to different counts
// 15 | shared-race mbarrier-overwritten | one of the two warps uses the mbarrier without waiting for the other
#include "device.cuh"
#include "host.h"

constexpr int kThreads = 64, kBytes = kThreads * 4;

DEVICE void mbar_inval(uint64_t* bar) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(smem_u32(bar)) : "memory");
}
DEVICE void mbar_arrive_count(uint64_t* bar, uint32_t count) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(bar)), "r"(count)
               : "memory");
}
DEVICE void bulk_multicast(void* dst, const void* src, uint64_t* bar, int bytes, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1], %2, [%3], %4;" ::"r"(smem_u32(dst)),
      "l"(src), "r"(bytes), "r"(smem_u32(bar)), "h"(mask)
      : "memory");
}

template <int MUTANT>
__global__ __cluster_dims__(2, 1, 1) void letters(const float* x, float* y) {
  __shared__ __align__(16) float sent[kThreads];
  __shared__ float inbox[kThreads];
  __shared__ __align__(16) uint64_t mail[2];
  __shared__ __align__(16) uint64_t loaded;
  int rank = static_cast<int>(cluster_rank()), i = static_cast<int>(threadIdx.x);
  int also = MUTANT == 12 ? 1 : MUTANT >= 13 ? 32 : 0;  // the thread that initialises it, too
  if (i == 0 || i == also) {
    int count = MUTANT == 14 && i == also ? kThreads - 1 : kThreads;
    mbar_init(&mail[0], PICK(3, count, kThreads / 2));  // @12 @13 @14 @15
    ONLY(15) mbar_arrive_count(&mail[0], 1);            // @15
  }
  if (i == 0) {
    mbar_init(&loaded, 1);
    fence_mbar_init();
    ONLY(10) mbar_arrive_count(&loaded, 0);  // @10
  }
  if (MUTANT == 1) {
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();
  }
  ONLY(2) mbar_arrive_remote(map_to_rank(&mail[0], 1 - rank));              // @2
  store_cluster(map_to_rank(&inbox[i], 1 - rank), x[rank * kThreads + i]);  // @1 @2
  UNLESS(2) mbar_arrive_remote(map_to_rank(&mail[0], 1 - rank));            // @3
  ONLY(11) mbar_wait_at(map_to_rank(&mail[0], 1 - rank), 0);                // @11
  mbar_wait(&mail[0], 0);                                                   // @3 @5
  float sum = inbox[kThreads - 1 - i];                                      // @2 @3
  UNLESS(5) __syncthreads();
  if (i == 0) {
    UNLESS(4) mbar_inval(&mail[0]);                               // @5
    UNLESS(6) reinterpret_cast<volatile float*>(mail)[0] = 2.0f;  // @4
  }
  __syncthreads();
  sum *= reinterpret_cast<volatile float*>(mail)[0];  // @6
  if (i == 0) mbar_expect_tx(&loaded, kBytes);
  cluster_arrive();
  cluster_wait();
  if (rank == 0 && i == 0)
    bulk_multicast(MUTANT == 9 ? reinterpret_cast<float*>(&loaded) : sent, x, &loaded,
                   PICK(9, kBytes, 16), 3);  // @7 @9
  if (MUTANT != 7 || rank == 0) {
    mbar_wait(&loaded, 0);
    sum += sent[i];
  }
  ONLY(8)
    if (rank == 1) store_cluster(map_to_rank(&inbox[i], 0), sum);  // @8
  y[rank * kThreads + i] = sum;
}  // @7

template <int MUTANT>
int run() {
  auto x = small_floats(2 * kThreads);
  Buffer<float> dx(x), dy(2 * kThreads);
  std::vector<float> want(2 * kThreads);
  for (int i = 0; i < 2 * kThreads; ++i) want[i] = 2 * x[2 * kThreads - 1 - i] + x[i % kThreads];
  launch(letters<MUTANT>, {.grid = 2, .block = kThreads}, dx.data, dy.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dy.download(), want);
}
MAIN(15)
