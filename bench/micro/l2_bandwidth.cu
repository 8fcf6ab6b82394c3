// Bytes a cycle that tensor copies bring to a SM from L2, with 1, 33 and all SMs reading, and with
// each box sent to the 2 or 4 CTAs of a cluster by multicast; and from DRAM. A thread a SM keeps a
// ring of 8 boxes of 16 KB in flight.
//
// Bound: 64 bytes a cycle into a SM (without multicast); all SMs together about 38 each from L2
// (9.6 to 10.2 TB/s on an H200 at 1.98 GHz); DRAM 3.35 TB/s on an H100, 4.8 on an H200.
// Loop: one UTMALDG, and with multicast one UTMALDG and the remote arrivals; no load or store.
// Disbelieve: over 64 bytes a cycle without multicast, over 128 with; DRAM over 4.8 TB/s.
#include "micro.h"
#include "ptx/tma.cuh"

namespace {

using namespace micro;
using namespace l4k::ptx;

constexpr int kStages = 8, kTileRows = 128, kTileBytes = kTileRows * kRowBytes;
// Tiles between the use of a slot and its refill: peers have left it by then.
constexpr int kLag = 2;

template <int kCluster>
__device__ __forceinline__ void load_tile(uint8_t* slot, const CUtensorMap* map, uint64_t* full,
                                          int tile, uint32_t rank) {
  constexpr int kPart = kTileRows / kCluster;
  mbarrier_arrive_expect_tx(full, kTileBytes);
  if constexpr (kCluster == 1) tma_load_2d(slot, map, full, 0, tile * kTileRows);
  else
    tma_load_2d_multicast(slot + rank * kPart * kRowBytes, map, full, 0,
                          tile * kTileRows + rank * kPart, (1 << kCluster) - 1);
}

// Cluster c reads `tiles` tiles of the window from tile c * spread on, cyclically.
template <int kCluster>
__global__ __launch_bounds__(128) void read(const __grid_constant__ CUtensorMap map, int tiles,
                                            int window, int spread, uint32_t* sums,
                                            int64_t* elapsed) {
  extern __shared__ __align__(1024) uint8_t smem[];
  __shared__ uint64_t full[kStages], empty[kStages];
  __shared__ uint32_t sum;
  const uint32_t rank = kCluster == 1 ? 0 : cluster_cta_rank();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, kCluster);
    }
    fence_mbarrier_init();
    sum = 0;
  }
  if constexpr (kCluster > 1) cluster_sync();
  __syncthreads();
  if (threadIdx.x == 0) {
    int tile = static_cast<int>(blockIdx.x / kCluster * int64_t{spread} % window);
    auto next = [&] {
      const int now = tile;
      tile = tile + 1 == window ? 0 : tile + 1;
      return now;
    };
    const int64_t begin = cycles();
    for (int i = 0; i < kStages; ++i)
      load_tile<kCluster>(smem + i * kTileBytes, &map, full + i, next(), rank);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      const int slot = i % kStages, refill = i - kLag;
      wait(full + slot, i / kStages & 1);
      if constexpr (kCluster > 1)
#pragma unroll
        for (int peer = 0; peer < kCluster; ++peer)
          mbarrier_arrive_remote<false>(empty + slot, peer);
      if (refill < 0 || refill + kStages >= tiles) continue;
      const int into = refill % kStages;
      if constexpr (kCluster > 1) wait(empty + into, refill / kStages & 1);
      load_tile<kCluster>(smem + into * kTileBytes, &map, full + into, next(), rank);
    }
    elapsed[blockIdx.x] = cycles() - begin;
  }
  __syncthreads();
  uint32_t own = 0;
  for (int i = threadIdx.x; i < kStages * kTileBytes / 4; i += blockDim.x)
    own += reinterpret_cast<const uint32_t*>(smem)[i];
  atomicAdd(&sum, own);
  if constexpr (kCluster > 1) cluster_sync();  // nobody arrives at a CTA that has gone
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <int kCluster>
void measure(const std::string& name, const Rows& rows, int window, int grid, int tiles,
             int repeats) {
  grid = std::max(kCluster, grid / kCluster * kCluster);
  const CUtensorMap map = rows.map(kTileRows / kCluster);
  const std::vector<uint32_t> tile_sums = rows.tile_sums(kTileRows);
  const int clusters = grid / kCluster, spread = std::max(1, window / clusters);
  Buffer<uint32_t> sums(grid);
  Buffer<int64_t> elapsed(grid);
  const l4k::LaunchConfig config{.grid = dim3(grid),
                                 .block = dim3(128),
                                 .smem_bytes = kStages * kTileBytes,
                                 .cluster = kCluster,
                                 .dependent = false};
  const double us = event_us(repeats, [&] {
    MICRO_CHECK(l4k::launch(read<kCluster>, config, stream(), map, tiles, window, spread, sums.data,
                            elapsed.data));
  });
  const std::vector<uint32_t> got = sums.host();
  for (int cta = 0; cta < grid; ++cta) {
    uint32_t expected = 0;
    for (int i = tiles - kStages; i < tiles; ++i)
      expected += tile_sums[(int64_t{cta / kCluster} * spread + i) % window];
    expect(got[cta] == expected, name + ": sum of the ring of CTA " + std::to_string(cta));
  }
  const double bytes = double(tiles) * kTileBytes;
  print(name, bytes / median(elapsed.host()), "bytes/cycle/SM");
  print(name + "_tbs", bytes * grid / us * 1e-6, "TB/s received");
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  const int sms = l4k::sm_count(), window = small ? 12 : 1024, tiles = small ? 19 : 2048;
  {
    const Rows rows(window * kTileRows, true);
    measure<1>("l2_one", rows, window, 1, tiles, small ? 1 : 5);
    measure<1>("l2_quarter", rows, window, sms / 4, tiles, small ? 1 : 5);
    measure<1>("l2_all", rows, window, sms, tiles, small ? 1 : 5);
    measure<2>("multicast_2", rows, window, sms, tiles, small ? 1 : 5);
    measure<4>("multicast_4", rows, window, sms, tiles, small ? 1 : 5);
  }
  const int far = small ? 4 * 10 : sms * 512;  // each SM its own 8 MB
  const Rows rows(int64_t{far} * kTileRows, true);
  measure<1>("dram_all", rows, far, sms, small ? 10 : 512, small ? 1 : 5);
}
