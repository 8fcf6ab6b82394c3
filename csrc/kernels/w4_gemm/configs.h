// The tiles that w4_gemm is compiled for. Integers only; tools/gemm_configs.py reads the table for
// Python.
#pragma once
#include <cstdint>
#include <string_view>

#include "tile/base.h"
#include "tile/int4.h"
#include "tile/schedule.h"

namespace l4k {

// Two consumer warpgroups and a producer warp. Weights are the 64 rows of wgmma, converted in
// registers; tokens are its columns. A stage holds 128 of K of both.
struct W4GemmConfig {
  const char* name;      // what the fields say
  int block_m, block_n;  // tokens and weight rows of a tile
  int stages;

  // Times 64 rows that a warpgroup multiplies.
  L4K_HD constexpr int sub_tiles() const { return block_n / 128; }
  L4K_HD constexpr int row_tiles() const { return block_n / kInt4TileRows; }
  L4K_HD constexpr int token_bytes() const { return block_m * kInt4TileK * 2; }
  // Float32 sums of a thread.
  L4K_HD constexpr int sums() const { return sub_tiles() * block_m / 2; }
  // Few sums: leaves half of the SM to its neighbour in the stream, so that the next product starts,
  // and fetches its weights, under the end of this one.
  L4K_HD constexpr int ctas_per_sm() const { return sums() <= 32 ? 2 : 1; }
  L4K_HD constexpr int producer_registers() const { return ctas_per_sm() == 2 ? 32 : 40; }
  L4K_HD constexpr int consumer_registers() const { return ctas_per_sm() == 2 ? 104 : 232; }
  // Results leave by way of shared memory, this many tokens at a time; a warpgroup has 64 channels.
  L4K_HD constexpr int staged_tokens() const {
    return ctas_per_sm() == 1 ? 64 : block_m / 2;  // what remains of half an SM
  }
  L4K_HD constexpr int staging_bytes() const { return staged_tokens() * 64 * 2; }
  // K is split only where all rows of a product lie in one tile of each expert: in a tile that is
  // split elsewhere a row would have other bits, and its bits must not depend on its place.
  L4K_HD constexpr bool may_split(int m) const { return m <= block_m; }
  // With schedules and barriers.
  L4K_HD constexpr int smem_bytes() const {
    const int stage = token_bytes() + row_tiles() * kMaxInt4TileBytes + 16;
    return round_up(stages * stage + 2 * staging_bytes() + 2 * kMaxExperts * 4 + 96, 1024);
  }
};

// A configuration's number is its place in the table. Callers and measurements count by it, so a new
// one goes to the end.
constexpr W4GemmConfig kW4GemmConfigs[] = {
    // clang-format off: one a line
    // Many tokens.
    {.name = "w4_128x256", .block_m = 128, .block_n = 256, .stages = 4},
    {.name = "w4_64x256", .block_m = 64, .block_n = 256, .stages = 5},
    // Memory binds.
    {.name = "w4_64x128", .block_m = 64, .block_n = 128, .stages = 4},
    {.name = "w4_32x128", .block_m = 32, .block_n = 128, .stages = 6},
    // clang-format on
};
constexpr int kNumW4GemmConfigs = sizeof(kW4GemmConfigs) / sizeof(kW4GemmConfigs[0]);

// A configuration's number by its name; a name that is not in the table does not compile.
consteval int w4_gemm_config(std::string_view name) {
  for (int i = 0; i < kNumW4GemmConfigs; ++i)
    if (name == kW4GemmConfigs[i].name) return i;
  throw "not a name of kW4GemmConfigs";
}

// The one statement of what a configuration may be.
constexpr bool valid(const W4GemmConfig& c) {
  return c.block_n % 128 == 0 && c.block_m % c.staged_tokens() == 0 && c.block_m <= 128 &&
         c.sums() <= 128 && c.stages >= 2 && c.smem_bytes() <= 228 * 1024 / c.ctas_per_sm() - 1024;
}
constexpr bool all_valid_w4() {
  for (const W4GemmConfig& c : kW4GemmConfigs)
    if (!valid(c)) return false;
  return true;
}
static_assert(all_valid_w4());

}  // namespace l4k
