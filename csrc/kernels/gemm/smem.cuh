// The shared memory of one CTA, where the CTA stands in its cluster, and what it does of a tile.
#pragma once
#include "kernels/gemm/configs.h"
#include "tile/cluster.cuh"
#include "tile/pipeline.cuh"
#include "tile/schedule.h"

namespace l4k {

constexpr int kGemmThreads = 384;
constexpr int kGemmConsumers = 256;  // threads 128 ... 383
constexpr int kGemmRound = 128;      // columns of results that a staging buffer holds
constexpr int kGemmTiles = 4;        // published ahead: the producer is as far as the ring is deep
// Ids of named barriers; 0 is __syncthreads'.
enum GemmBarrier : int {
  kBarrierStaging = 1,  // and 2: of one consumer warpgroup each
  kBarrierConsumers = 3,
};

// `ctas` CTAs work on one tile of the schedule: `index` says on which ones, `rank` on what part, which
// is one of `splits` of K if there are several.
struct GemmCluster {
  int ctas, splits, rank;
  int index, count;

  static __device__ __forceinline__ GemmCluster of(int ctas, int splits) {
    const int block = blockIdx.x, blocks = gridDim.x;
    if (ctas == 1) return {1, 1, 0, block, blocks};
    return {ctas, splits, block % ctas, block / ctas, blocks / ctas};
  }
};

// A tile as it is published: the CTA's own within the cluster's, its K blocks, and how many stages of
// the ring bring its residual after them.
struct alignas(16) GemmShare {
  RaggedTile tile;
  int first_block, end_block;
  int residual_stages;

  __device__ __forceinline__ bool exists() const { return tile.expert >= 0; }
};

template <int I>
struct GemmSmem {
  static constexpr GemmConfig C = kGemmConfigs[I];
  alignas(1024) char a[C.stages][C.block_m * 128];  // [rows][128 bytes of K], 128-byte swizzle
  alignas(1024) char b[C.stages][C.block_n * 128];
  alignas(1024) char staging[C.staging_bytes()];
  int row_ends[kMaxExperts], tile_ends[kMaxExperts];
  GemmShare tiles[kGemmTiles];
  // Read again for every tile rather than kept in registers through the products.
  GemmCluster cluster;
  Pipeline<C.stages> ring;
  Pipeline<kGemmTiles> tile_ring;
  ClusterBarrier cluster_barrier;                // of the consumers of swapped operands
  uint64_t maxima_full[2][kGemmConsumers / 32];  // e4m3 results: the other CTA's, of a warp's rows
};

// Tells every producer that fills this stage that a consumer has read it: by one thread for each CTA.
template <int I>
__device__ __forceinline__ void release(GemmSmem<I>& smem, int stage) {
  constexpr int kCtas = kGemmConfigs[I].cluster();
  const int thread = threadIdx.x % 128;
  if (thread % 32 != 0 || thread / 32 >= kCtas) return;
  if constexpr (kCtas == 1) {
    smem.ring.release(stage);
  } else {
    ptx::mbarrier_arrive_remote<false>(&smem.ring.empty[stage], thread / 32);
  }
}

}  // namespace l4k
