// What each feature of a launch costs in a captured chain of dependent launches: an empty kernel of
// 132 CTAs, then shared memory, clusters, setmaxnreg, one tensor copy from DRAM, a cluster barrier,
// when the next launch is triggered, and 40 MB read over all SMs. Why: products of few rows take 8
// to 10 us more than their bytes, streaming kernels 1.2 to 1.4.
//
// Bound: an empty launch about 1.3 us; one tensor copy no less than DRAM's latency (0.5 us); 40 MB
// 12.5 us at 3.35 TB/s, 8.7 at 4.8. `read_40m_inside` reads ten times as much in one launch and is
// given per 40 MB: what a read_40m_... takes more than it is the cost of the launch.
// Loop: of the reads, one UTMALDG and no load or store; an empty kernel holds ACQBULK and nothing
// that touches memory. With setmaxnreg a kernel is compiled for exactly 168 registers, else it
// hangs: the program looks before it launches.
// Disbelieve: under 0.2 us (launches were lost), 40 MB in under 8 us or over 80.
#include "micro.h"
#include "ptx/tma.cuh"

namespace {

using namespace micro;
using namespace l4k::ptx;

enum Feature : unsigned {
  kNothing = 0,
  kRegisters = 1,    // 384 threads, setmaxnreg 24 / 240 / 240
  kBarrier = 2,      // a cluster barrier at the end
  kRelaxed = 4,      // that orders nothing
  kEarly = 8,        // the next launch is triggered at the start,
  kLate = 16,        // or at the end; otherwise by the end of the CTA itself
  kCopies = 32,      // tensor copies in a ring, the map prefetched
  kBeforeWait = 64,  // that start before the wait for the predecessor
};

constexpr int kTileRows = 128, kTileBytes = kTileRows * kRowBytes, kMaxStages = 12;

// The CTA's tiles first + blockIdx.x, + gridDim.x, ..., `count` in all of them.
__device__ void bring(uint8_t* ring, uint64_t* full, const CUtensorMap* map, int first, int count,
                      int stages) {
  const int step = gridDim.x, end = first + count;
  auto load = [&](int tile, int slot) {
    mbarrier_arrive_expect_tx(full + slot, kTileBytes);
    tma_load_2d(ring + slot * kTileBytes, map, full + slot, 0, tile * kTileRows);
  };
  int next = first + blockIdx.x;
  for (int slot = 0; slot < stages && next < end; ++slot, next += step) load(next, slot);
  int slot = 0, parity = 0;
#pragma unroll 1
  for (int tile = first + blockIdx.x; tile < end; tile += step) {
    wait(full + slot, parity);
    if (next < end) load(next, slot);
    next += step;
    if (++slot == stages) slot = 0, parity ^= 1;
  }
}

template <unsigned kFeatures>
__global__ __launch_bounds__(kFeatures& kRegisters ? 384 : 128,
                             1) void cost(const __grid_constant__ CUtensorMap map, int first,
                                          int count, int stages, uint32_t* sums) {
  extern __shared__ __align__(1024) uint8_t smem[];
  __shared__ uint64_t full[kMaxStages];
  if constexpr (kFeatures & kEarly) grid_launch_dependents();
  if constexpr (kFeatures & kCopies) {
    if (threadIdx.x == 0) {
      prefetch_tensor_map(&map);
      for (int i = 0; i < stages; ++i) mbarrier_init(full + i, 1);
      fence_mbarrier_init();
    }
    __syncthreads();
  }
  if constexpr (!(kFeatures & kBeforeWait)) grid_dependency_wait();
  if constexpr (kFeatures & kRegisters) {
    if (threadIdx.x < 128) registers_decrease<24>();
    else registers_increase<240>();
  }
  if constexpr (kFeatures & kCopies) {
    if (threadIdx.x == 0) bring(smem, full, &map, first, count, stages);
    if (sums != nullptr) {  // one tile a CTA at most: its sum
      __syncthreads();
      if (threadIdx.x == 0 && blockIdx.x < count) {
        uint32_t sum = 0;
        for (int i = 0; i < kTileBytes / 4; ++i) sum += reinterpret_cast<uint32_t*>(smem)[i];
        sums[blockIdx.x] = sum;
      }
    }
  }
  if constexpr (kFeatures & kBeforeWait) grid_dependency_wait();
  if constexpr (kFeatures & kBarrier) {
    if constexpr (kFeatures & kRelaxed) cluster_sync_relaxed();
    else cluster_sync();
  }
  if constexpr (kFeatures & kLate) grid_launch_dependents();
}

struct Shape {
  int smem_kb = 0, cluster = 1;
  bool dependent = true;
};

struct Data {
  Rows rows;
  std::vector<uint32_t> sums;  // of tiles
  int tiles;                   // in all
  int read_tiles;              // of one 40 MB read
  bool small;
};

// A launch of one CTA a SM that reads `read` tiles, other ones each time.
template <unsigned kFeatures>
void measure(const std::string& name, const Data& data, const Shape& shape, int read = 0,
             int more_launches = 200) {
  const int sms = l4k::sm_count();
  const int grid = std::max(shape.cluster, sms / shape.cluster * shape.cluster);
  const CUtensorMap map = data.rows.map(kTileRows);
  const bool registers = kFeatures & kRegisters;
#ifndef L4K_EMULATED
  cudaFuncAttributes attributes;
  MICRO_CHECK(cudaFuncGetAttributes(&attributes, cost<kFeatures>));
  expect(!registers || attributes.numRegs == 168, name + ": setmaxnreg needs 168 registers");
#endif
  const size_t smem = size_t(shape.smem_kb) << 10;
  const int stages = std::min<int>(kMaxStages, smem / kTileBytes);
  const l4k::LaunchConfig config{.grid = dim3(grid),
                                 .block = dim3(registers ? 384 : 128),
                                 .smem_bytes = smem,
                                 .cluster = shape.cluster,
                                 .dependent = shape.dependent};
  const int regions = std::max(1, data.tiles / std::max(1, read));
  auto launch = [&](int i, int count, uint32_t* sums) {
    MICRO_CHECK(l4k::launch(cost<kFeatures>, config, stream(), map,
                            read == 0 ? 0 : i % regions * read, count, stages, sums));
  };
  if (kFeatures & kCopies) {
    Buffer<uint32_t> sums(grid);
    launch(0, std::min(read, grid), sums.data);
    const std::vector<uint32_t> got = sums.host();
    for (int i = 0; i < std::min(read, grid); ++i)
      expect(got[i] == data.sums[i], name + ": sum of a tile");
  }
  const int few = data.small ? 1 : 20;
  const Chain chain{few, few + (data.small ? 2 : more_launches), data.small ? 1 : 9};
  double us = chain.us([&](int i) { launch(i, read, nullptr); });
  // A reader that needs more than one launch's share of 40 MB says so: per 40 MB.
  if (read > data.read_tiles) us *= double(data.read_tiles) / read;
  std::string more = "\"ctas\": " + std::to_string(grid);
  if (shape.cluster > 1)
    more += ", \"clusters\": " + std::to_string(grid / shape.cluster) +
            ", \"resident_clusters\": " +
            std::to_string(l4k::resident_clusters(cost<kFeatures>, config));
  print(name, us, "us/launch", more);
  finish();
}

void empty_ones(const Data& data) {
  measure<kNothing>("empty", data, {});
  measure<kNothing>("empty_not_dependent", data, {0, 1, false});
  measure<kEarly>("empty_early", data, {});
  measure<kLate>("empty_late", data, {});
  measure<kNothing>("smem_100k", data, {100});
  measure<kNothing>("smem_200k", data, {200});
  measure<kEarly>("smem_100k_early", data, {100});
  measure<kEarly>("smem_200k_early", data, {200});
  measure<kNothing>("cluster_2", data, {0, 2});
  measure<kNothing>("cluster_4", data, {0, 4});
  measure<kNothing>("cluster_8", data, {0, 8});
  measure<kNothing>("cluster_2_200k", data, {200, 2});
  measure<kNothing>("cluster_4_200k", data, {200, 4});
  measure<kNothing>("cluster_8_200k", data, {200, 8});
  measure<kRegisters>("setmaxnreg_384", data, {});
  measure<kBarrier>("barrier_2", data, {0, 2});
  measure<kBarrier>("barrier_4", data, {0, 4});
  measure<kBarrier | kRelaxed>("barrier_2_relaxed", data, {0, 2});
}

void reading_ones(const Data& data) {
  const int one = l4k::sm_count(), all = data.read_tiles;
  measure<kCopies>("copy_100k", data, {100}, one);
  measure<kCopies>("copy_200k", data, {200}, one);
  measure<kCopies | kEarly>("copy_100k_early", data, {100}, one);
  measure<kCopies | kEarly>("copy_200k_early", data, {200}, one);
  constexpr unsigned kFull = kCopies | kRegisters | kBarrier;
  measure<kFull>("full", data, {200, 2}, one);
  measure<kFull | kEarly>("full_early", data, {200, 2}, one);
  measure<kFull | kLate>("full_late", data, {200, 2}, one);
  measure<kCopies>("read_40m_inside", data, {200}, 10 * all, 8);
  measure<kCopies>("read_40m_not_dependent", data, {200, 1, false}, all, 60);
  measure<kCopies>("read_40m_200k", data, {200}, all, 60);
  measure<kCopies | kEarly>("read_40m_100k_early", data, {100}, all, 60);
  measure<kCopies | kEarly>("read_40m_200k_early", data, {200}, all, 60);
  measure<kCopies | kLate>("read_40m_200k_late", data, {200}, all, 60);
  measure<kCopies | kEarly | kBeforeWait>("read_40m_100k_before_wait", data, {100}, all, 60);
  measure<kCopies | kEarly | kBeforeWait>("read_40m_200k_before_wait", data, {200}, all, 60);
  measure<kFull | kEarly>("read_40m_full_early", data, {200, 2}, all, 60);
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  const int read = small ? 10 : (40 << 20) / kTileBytes, tiles = small ? 100 : 13 * read;
  Rows rows(int64_t{tiles} * kTileRows, true);
  const Data data{rows, rows.tile_sums(kTileRows), tiles, read, small};
  empty_ones(data);
  reading_ones(data);
}
