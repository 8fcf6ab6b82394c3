// The configurations that the GEMM is compiled for. Integers only; tools/gemm_configs.py reads the
// table for Python.
#pragma once
#include <cstdint>
#include <string_view>

#include "tile/base.h"
#include "tile/schedule.h"

namespace l4k {

// Two consumer warpgroups; a stage holds 128 bytes of K of both operands. The tensor core
// multiplies 64 rows a warpgroup by 8 to 256 columns: rows of A by rows of B, or, swapped, rows of
// B (weights) by rows of A (tokens), so that few tokens leave no lane idle.
struct GemmConfig {
  const char* name;   // operands, swap, tile, cluster, promote or gelu: what the fields say
  bool fp8 = false;   // e4m3 operands, else bf16
  bool swap = false;  // weights take wgmma's rows, tokens its columns
  // e4m3: add each 128 of K to float32 registers: a second set of accumulators, so no 256 columns.
  bool promote = false;
  // erf-GELU on 64 registers a thread, which only the vision tower needs (swapped ones all have it).
  bool gelu = false;
  bool split_k = false;  // CTAs that share B may instead sum half of K each, for up to 128 rows
  int generation = 0;    // of the table; measurements know the entries up to theirs
  int block_m, block_n;  // rows and columns of D, one CTA
  int stages;
  // Neighbouring tiles of a cluster: CTAs in one column of tiles share B's box, in one row A's.
  int cluster_m = 1, cluster_n = 1;

  L4K_HD constexpr int cluster() const { return cluster_m * cluster_n; }
  // SwiGLU to e4m3: 256 columns of N share a scale, and two CTAs hold them.
  L4K_HD constexpr bool fp8_results() const {
    return fp8 && block_n == 128 && (swap || cluster_n == 2);
  }
  // Columns of a box of bf16 results: the widest swizzle that cuts the tile into whole boxes.
  L4K_HD constexpr int result_box() const {
    return block_n % 64 == 0 ? 64 : block_n % 32 == 0 ? 32 : 16;
  }
  // SwiGLU leaves half of the columns, which must be whole boxes as well.
  L4K_HD constexpr bool swiglu() const { return swap || block_n % 128 == 0; }
  L4K_HD constexpr int block_k() const { return fp8 ? 128 : 64; }
  // wgmma's operands: both warpgroups' 64 rows, and the columns.
  L4K_HD constexpr int left() const { return swap ? block_n : block_m; }
  L4K_HD constexpr int right() const { return swap ? block_m : block_n; }
  // A tall tile is multiplied in sub-tiles of 128 rows, so that one scratch accumulator promotes both
  // and one without rows can be skipped.
  L4K_HD constexpr int sub_tiles() const { return left() / 128; }
  L4K_HD constexpr int stage_bytes() const { return (block_m + block_n) * 128; }
  // A row of the staged float32 result: 4 floats longer, so that 4 rows of 8 hit 32 banks.
  L4K_HD constexpr int pitch() const { return block_n + 4; }
  // The staged result of one consumer: bf16 boxes for TMA, 128 columns at a time.
  L4K_HD constexpr int result_bytes() const { return 64 * 128 * 2; }
  // What is staged for the cluster's CTAs to add up in float32: swapped, a tile's sums instead of
  // results; else behind both consumers' results the sums of the 64 rows that the other CTA finishes.
  L4K_HD constexpr int sums_bytes() const {
    return swap ? block_m * pitch() * 4 : split_k ? 64 * block_n * 4 : 0;
  }
  L4K_HD constexpr int staging_bytes() const {
    return sums_bytes() + (swap ? 0 : 2 * result_bytes());
  }
  // Few accumulators: leaves half of the SM to its neighbours in the stream, so that the next
  // product starts, and fetches its weights, under the end of this one.
  L4K_HD constexpr int ctas_per_sm() const { return right() <= 64 ? 2 : 1; }
  L4K_HD constexpr int producer_registers() const { return ctas_per_sm() == 2 ? 32 : 40; }
  L4K_HD constexpr int consumer_registers() const { return ctas_per_sm() == 2 ? 104 : 232; }
  // With schedule, published tiles and barriers.
  L4K_HD constexpr int smem_bytes() const {
    return round_up(stages * (stage_bytes() + 16) + staging_bytes() + 2 * kMaxExperts * 4 + 384,
                    1024);
  }
};

// A configuration's number is its place in the table, by which callers ask for it.
constexpr GemmConfig kGemmConfigs[] = {
    // clang-format off: flags, then sizes
    // The largest wgmma; twice as many tiles, for middling M.
    {.name = "bf16_128x256",
     .block_m = 128, .block_n = 256, .stages = 4},
    {.name = "bf16_128x128",
     .block_m = 128, .block_n = 128, .stages = 6},
    // The vision tower.
    {.name = "bf16_128x128_1x2_gelu", .gelu = true,
     .block_m = 128, .block_n = 128, .stages = 6, .cluster_n = 2},
    // Pairs share B: large products.
    {.name = "bf16_128x256_2x1",
     .block_m = 128, .block_n = 256, .stages = 4, .cluster_m = 2},
    // As wide as fills the waves: 5120 columns are 32 of 160 or 64 of 80, 7168 are 32 of 224 or 64 of 112,
    // so that 256 to 2048 rows make 128, 256 or 512 tiles for 132 SMs.
    {.name = "bf16_128x224_2x1", .generation = 1,
     .block_m = 128, .block_n = 224, .stages = 4, .cluster_m = 2},
    {.name = "bf16_128x160_2x1", .generation = 1,
     .block_m = 128, .block_n = 160, .stages = 5, .cluster_m = 2},
    {.name = "bf16_128x112_2x1", .split_k = true, .generation = 1,
     .block_m = 128, .block_n = 112, .stages = 5, .cluster_m = 2},
    {.name = "bf16_128x80_2x1", .split_k = true, .generation = 1,
     .block_m = 128, .block_n = 80, .stages = 6, .cluster_m = 2},
    // Promoted pairs share A, and their two tiles are one block of 128 SwiGLU results. The tall tile
    // is for large products.
    {.name = "fp8_128x128_1x2_promote", .fp8 = true, .promote = true,
     .block_m = 128, .block_n = 128, .stages = 6, .cluster_n = 2},
    {.name = "fp8_256x128_1x2_promote", .fp8 = true, .promote = true,
     .block_m = 256, .block_n = 128, .stages = 4, .cluster_n = 2},
    // As their likes in bf16.
    {.name = "fp8_128x160_2x1_promote", .fp8 = true, .promote = true, .generation = 1,
     .block_m = 128, .block_n = 160, .stages = 5, .cluster_m = 2},
    {.name = "fp8_128x112_2x1_promote", .fp8 = true, .promote = true, .split_k = true, .generation = 1,
     .block_m = 128, .block_n = 112, .stages = 5, .cluster_m = 2},
    {.name = "fp8_128x80_2x1_promote", .fp8 = true, .promote = true, .split_k = true, .generation = 1,
     .block_m = 128, .block_n = 80, .stages = 6, .cluster_m = 2},
    // Fast accumulation, alone and in pairs that share B.
    {.name = "fp8_128x256", .fp8 = true,
     .block_m = 128, .block_n = 256, .stages = 4},
    {.name = "fp8_128x256_2x1", .fp8 = true,
     .block_m = 128, .block_n = 256, .stages = 4, .cluster_m = 2},
    // Few rows of A of each of many experts, or more than stream; e4m3 results of few rows.
    {.name = "bf16_swap_16x128", .swap = true,
     .block_m = 16, .block_n = 128, .stages = 5},
    {.name = "bf16_swap_64x128", .swap = true,
     .block_m = 64, .block_n = 128, .stages = 3},
    {.name = "bf16_swap_128x128", .swap = true,
     .block_m = 128, .block_n = 128, .stages = 4},
    {.name = "fp8_swap_16x128_promote", .fp8 = true, .swap = true, .promote = true,
     .block_m = 16, .block_n = 128, .stages = 5},
    {.name = "fp8_swap_64x128_promote", .fp8 = true, .swap = true, .promote = true,
     .block_m = 64, .block_n = 128, .stages = 3},
    {.name = "fp8_swap_64x128", .fp8 = true, .swap = true,
     .block_m = 64, .block_n = 128, .stages = 3},
    {.name = "fp8_swap_128x128", .fp8 = true, .swap = true,
     .block_m = 128, .block_n = 128, .stages = 4},
    // clang-format on
};
constexpr int kNumGemmConfigs = sizeof(kGemmConfigs) / sizeof(kGemmConfigs[0]);
constexpr int kMaxSplits = 8;

// A configuration's number by its name; a name that is not in the table does not compile.
consteval int gemm_config(std::string_view name) {
  for (int i = 0; i < kNumGemmConfigs; ++i)
    if (name == kGemmConfigs[i].name) return i;
  throw "not a name of kGemmConfigs";
}

// The one statement of what a configuration may be.
constexpr bool valid(const GemmConfig& c) {
  return c.left() % 128 == 0 && c.right() % 8 == 0 && c.right() <= 256 &&
         c.right() * (c.sub_tiles() + c.promote) <= 3 * 128 &&  // 192 registers of accumulators
         c.stages >= 2 && (c.fp8 || !c.promote) && !(c.swap && c.gelu) &&
         (c.sub_tiles() == 1 || (c.promote && !c.swap)) && (c.cluster_m == 1 || c.cluster_n == 1) &&
         !(c.swap && c.cluster() > 1) && (!c.split_k || c.cluster_m == 2) &&
         c.smem_bytes() <= 228 * 1024 / c.ctas_per_sm() - 1024;
}
constexpr bool all_valid() {
  for (const GemmConfig& c : kGemmConfigs)
    if (!valid(c)) return false;
  return true;
}
static_assert(all_valid());

}  // namespace l4k
