// What it costs to wake somebody: two warps hand a turn to each other and back, by an mbarrier of
// their CTA, by a named barrier, or by an mbarrier of the other CTA of a cluster; and a cluster
// barrier of 2 and of 8 CTAs. The compiler puts a fence as wide as the GPU (MEMBAR.ALL.GPU) before
// one that releases; `relaxed` is without.
//
// Bound: an mbarrier's arrival and the load that sees it are two trips to shared memory, about 60
// cycles; another SM is 180 to 215 cycles away.
// Loop: an arrival (SYNCS) and a try_wait, no load, no store.
// Disbelieve: local under 15 or over 400 cycles, remote under 150 or over 2,000: a turn was not
// waited for, or the warp slept until try_wait gave up.
#include "micro.h"
#include "ptx/cluster.cuh"

namespace {

using namespace micro;
using namespace l4k::ptx;

enum class Way { kMbarrier, kNamed, kRemote };

// Warp 0 and warp 1 of a CTA, or warps 0 of two CTAs; `rounds` trips there and back.
template <Way kWay>
__global__ __launch_bounds__(64) void turns(int rounds, int64_t* elapsed) {
  __shared__ uint64_t turn[2];
  const int warp = threadIdx.x / 32, player = kWay == Way::kRemote ? cluster_cta_rank() : warp;
  if (threadIdx.x == 0) {
    mbarrier_init(turn, 1);
    mbarrier_init(turn + 1, 1);
    fence_mbarrier_init();
  }
  if constexpr (kWay == Way::kRemote) cluster_sync();
  __syncthreads();
  const bool plays =
      kWay == Way::kNamed || (threadIdx.x % 32 == 0 && (kWay == Way::kMbarrier || warp == 0));
  const int64_t begin = cycles();
  if (plays && player == 0) {
#pragma unroll 1
    for (int i = 0; i < rounds; ++i) {
      if constexpr (kWay == Way::kMbarrier) mbarrier_arrive(turn + 1);
      if constexpr (kWay == Way::kNamed) named_barrier_arrive(1, 64);
      if constexpr (kWay == Way::kRemote) mbarrier_arrive_remote<false>(turn, 1);
      if constexpr (kWay == Way::kNamed) named_barrier_sync(2, 64);
      else wait(turn, i & 1);
    }
  } else if (plays) {
    uint64_t* mine = kWay == Way::kRemote ? turn : turn + 1;
#pragma unroll 1
    for (int i = 0; i < rounds; ++i) {
      if constexpr (kWay == Way::kNamed) named_barrier_sync(1, 64);
      else wait(mine, i & 1);
      if constexpr (kWay == Way::kMbarrier) mbarrier_arrive(turn);
      if constexpr (kWay == Way::kNamed) named_barrier_arrive(2, 64);
      if constexpr (kWay == Way::kRemote) mbarrier_arrive_remote<false>(turn, 0);
    }
  }
  if (threadIdx.x == 0 && player == 0) *elapsed = cycles() - begin;
  if constexpr (kWay == Way::kRemote) cluster_sync();
}

// Ordering memory is part of the barrier (a fence as wide as the GPU), or is left out.
template <bool kOrders>
__global__ __launch_bounds__(128) void cluster_barriers(int rounds, int64_t* elapsed) {
  const int64_t begin = cycles();
#pragma unroll 1
  for (int i = 0; i < rounds; ++i) {
    if constexpr (kOrders) cluster_sync();
    else cluster_sync_relaxed();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *elapsed = cycles() - begin;
}

// Each CTA adds to a word of the next one in turn: a chain that only the barriers put in order.
__global__ void cluster_order(int rounds, uint32_t* result) {
  __shared__ uint32_t word;
  const uint32_t rank = cluster_cta_rank();
  if (threadIdx.x == 0) word = rank;
  cluster_sync();
  for (int i = 0; i < rounds; ++i) {
    const uint32_t next = load_cluster(&word, (rank + 1) % gridDim.x);
    cluster_sync();
    if (threadIdx.x == 0) word = next;
    cluster_sync();
  }
  if (threadIdx.x == 0) result[rank] = word;
}

template <typename... P, typename... A>
double per_round(void (*kernel)(P...), int ctas, int threads, int rounds, A... arguments) {
  Buffer<int64_t> elapsed(1);
  const l4k::LaunchConfig config{
      .grid = dim3(ctas), .block = dim3(threads), .cluster = ctas, .dependent = false};
  for (int i = 0; i < 2; ++i) {  // the first one fetches the code
    MICRO_CHECK(l4k::launch(kernel, config, stream(), rounds, arguments..., elapsed.data));
    finish();
  }
  return double(elapsed.host()[0]) / rounds;
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  const int rounds = small ? 5 : 4000;
  print("mbarrier", per_round(turns<Way::kMbarrier>, 1, 64, rounds) / 2, "cycles");
  print("named_barrier", per_round(turns<Way::kNamed>, 1, 64, rounds) / 2, "cycles");
  print("remote_mbarrier", per_round(turns<Way::kRemote>, 2, 64, rounds) / 2, "cycles");
  print("cluster_barrier_2", per_round(cluster_barriers<true>, 2, 128, rounds), "cycles");
  print("cluster_barrier_8", per_round(cluster_barriers<true>, 8, 128, rounds), "cycles");
  print("cluster_barrier_2_relaxed", per_round(cluster_barriers<false>, 2, 128, rounds), "cycles");
  Buffer<uint32_t> result(4);
  const l4k::LaunchConfig config{
      .grid = dim3(4), .block = dim3(32), .cluster = 4, .dependent = false};
  MICRO_CHECK(l4k::launch(cluster_order, config, stream(), 3, result.data));
  const std::vector<uint32_t> got = result.host();
  for (uint32_t i = 0; i < 4; ++i) expect(got[i] == (i + 3) % 4, "order by cluster barriers");
}
