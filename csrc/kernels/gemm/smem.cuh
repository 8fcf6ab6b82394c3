// The shared memory of one CTA, and where the CTA stands in its cluster.
#pragma once
#include "kernels/gemm/configs.h"
#include "tile/cluster.cuh"
#include "tile/pipeline.cuh"
#include "tile/schedule.h"

namespace l4k {

constexpr int kGemmThreads = 384;
constexpr int kGemmConsumers = 256;  // threads 128 ... 383
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

template <int I>
struct GemmSmem {
  static constexpr GemmConfig C = kGemmConfigs[I];
  alignas(1024) char a[C.stages][C.block_m * 128];  // [rows][128 bytes of K], 128-byte swizzle
  alignas(1024) char b[C.stages][C.block_n * 128];
  alignas(1024) char staging[C.staging_bytes()];
  int row_ends[kMaxExperts], tile_ends[kMaxExperts];
  // Read again for every tile rather than kept in registers through the products.
  RaggedSchedule schedule;
  GemmCluster cluster;
  Pipeline<C.stages> ring;
  ClusterBarrier cluster_barrier;  // of the consumers
};

}  // namespace l4k
