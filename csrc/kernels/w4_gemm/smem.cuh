// The shared memory of one CTA.
#pragma once
#include "kernels/w4_gemm/configs.h"
#include "kernels/w4_gemm/schedule.h"
#include "tile/pipeline.cuh"
#include "tile/schedule.h"

namespace l4k {

constexpr int kW4Threads = 384;
constexpr int kW4Consumers = 256;  // threads 128 ... 383
// Ids of named barriers; 0 is __syncthreads'.
enum W4GemmBarrier : int {
  kW4BarrierStaging = 1,  // and 2: of one consumer warpgroup each
  kW4BarrierConsumers = 3,
};

template <int I>
struct W4GemmSmem {
  static constexpr W4GemmConfig C = kW4GemmConfigs[I];
  // Tokens: [half of K][token][64 of K], 128-byte swizzle.
  alignas(1024) char a[C.stages][2][C.token_bytes() / 2];
  alignas(1024) char staging[2][C.staging_bytes()];  // of each consumer warpgroup
  alignas(16) char w[C.stages][C.row_tiles()][kMaxInt4TileBytes];
  int row_ends[kMaxExperts], tile_ends[kMaxExperts];
  // Read again for every tile rather than kept in registers through the products.
  RaggedSchedule tiles;
  W4Turn turn;
  Pipeline<C.stages> ring;
  bool is_last;  // of the CTAs that sum a tile
};

}  // namespace l4k
