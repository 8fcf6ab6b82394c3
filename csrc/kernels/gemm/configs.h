// What is compiled, and which row a problem gets. Integers only.
#pragma once
#include "tile/base.h"
#include "tile/schedule.h"

namespace l4k {

// Two consumer warpgroups of 64 rows each; a stage holds 128 bytes of K of both operands.
struct GemmConfig {
  bool fp8;
  // e4m3: add each 128 of K to float32 registers: a second set of accumulators, so no 256 columns.
  bool promote;
  // erf-GELU: 128 unrolled error functions a thread, which only the vision tower needs.
  bool gelu;
  int block_m, block_n;
  int stages;

  L4K_HD constexpr int block_k() const { return fp8 ? 128 : 64; }
  L4K_HD constexpr int stage_bytes() const { return (block_m + block_n) * 128; }
  // Stages, the staged bf16 result, schedule and barriers.
  L4K_HD constexpr int smem_bytes() const {
    return stages * stage_bytes() + block_m * block_n * 2 + 2 * kMaxExperts * 4 + stages * 16 + 64 +
           1024;
  }
};

constexpr GemmConfig kGemmConfigs[] = {
    {false, false, false, 128, 256, 3},  // 0: bf16, the largest wgmma; what big products want
    {false, false, false, 128, 128, 5},  // 1: bf16, twice the tiles: fills the SMs at small N
    {false, false, true, 128, 128, 5},   // 2: bf16 with GELU
    {true, true, false, 128, 128, 5},    // 3: e4m3 promoted
    {true, false, false, 128, 256, 3},   // 4: e4m3 fast accumulation
};
constexpr int kNumGemmConfigs = sizeof(kGemmConfigs) / sizeof(kGemmConfigs[0]);

// The one statement of what a row may be.
constexpr bool valid(const GemmConfig& c) {
  return c.block_m == 128 && (c.block_n == 128 || (c.block_n == 256 && !c.promote)) &&
         c.stages >= 2 && (c.fp8 || !c.promote) && c.smem_bytes() <= 227 * 1024;
}
constexpr bool all_valid() {
  for (const GemmConfig& c : kGemmConfigs)
    if (!valid(c)) return false;
  return true;
}
static_assert(all_valid());

// Cycles of tensor core per tile and 128 bytes of K, in units of one m64n8 instruction: with tiles
// of one width the wave count decides, the wider tile wins ties because it reads A half as often.
constexpr long long modelled_cost(const GemmConfig& c, int row_tiles, int n, int sms) {
  const long long tiles = static_cast<long long>(row_tiles) * ceil_div(n, c.block_n);
  const long long waves = ceil_div<long long>(tiles, sms);
  return waves * (c.block_n + 16);  // 16: what a tile costs besides its products
}

// The row for a problem: the legal one with the least modelled cost.
constexpr int choose_gemm_config(int m, int n, int num_experts, bool fp8, bool fast_accum,
                                 bool gelu, int sms) {
  int best = -1;
  long long best_cost = 0;
  for (int i = 0; i < kNumGemmConfigs; ++i) {
    const GemmConfig& c = kGemmConfigs[i];
    if (c.fp8 != fp8 || (fp8 && c.promote == fast_accum) || c.gelu != gelu) continue;
    const int per_expert = ceil_div(m, num_experts);
    const int row_tiles = num_experts * ceil_div(per_expert, c.block_m);
    const long long cost = modelled_cost(c, row_tiles, n, sms);
    if (best < 0 || cost < best_cost) {
      best = i;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace l4k
