// Which configuration computes a product. Integers only.
#pragma once
#include <cstdint>

#include "kernels/w4_gemm/configs.h"
#include "kernels/w4_gemm/schedule.h"

namespace l4k {

struct W4GemmProblem {
  int m, n, k;  // elements
  int num_experts;
};

// CTAs that a product has work for, of as many as there are SMs.
constexpr int w4_gemm_ctas(const W4GemmConfig& c, const W4GemmProblem& p, int sms) {
  const int64_t tiles =
      int64_t{max_row_tiles(p.m, p.num_experts, c.block_m)} * ceil_div(p.n, c.block_n);
  const int64_t blocks = p.k / kInt4TileK;
  const int64_t pieces = c.may_split(p.m) ? tiles * ceil_div<int64_t>(blocks, 4) : tiles;
  return static_cast<int>(pieces < sms ? pieces : sms);
}

// Cycles, from what one SM can do in one: multiply 64 x 8 x 16 in 4, take 40 bytes from L2 and 17 from
// HBM, issue 4 instructions, of which converting 16 rows x 64 of K takes a warp 75. The longest of
// these is a K block, and the others get a little in its way. Sums that meet are written at 24 bytes a cycle and read at 40.
constexpr int64_t modelled_cost(const W4GemmConfig& c, const W4GemmProblem& p, int sms) {
  const int64_t active = p.m < p.num_experts ? p.m : p.num_experts;
  int64_t row_tiles = ceil_div(p.m, c.block_m) + (p.num_experts > 1 ? active / 2 : 0);
  if (row_tiles < active) row_tiles = active;
  const auto tiles = static_cast<int>(row_tiles * ceil_div(p.n, c.block_n));
  const int k_blocks = p.k / kInt4TileK;

  const int64_t products = int64_t{c.block_m} * c.block_n / 16;
  const int64_t copies = (c.token_bytes() + c.row_tiles() * Int4Tile{}.bytes()) / 40;
  const int64_t conversions = c.row_tiles() * 75 / 2;
  int64_t longest = products > copies ? products : copies;
  if (longest < conversions) longest = conversions;
  const int64_t block = longest + (products + copies + conversions - longest) / 16;

  const W4Schedule schedule = W4Schedule::of(tiles, k_blocks, sms, c.may_split(p.m));
  const int rounds = ceil_div(schedule.whole, sms);
  int64_t blocks = int64_t{rounds} * k_blocks, meeting = 0;
  if (schedule.rest.units > 0) {
    const int share = ceil_div(schedule.rest.units, schedule.rest.ctas);
    const int64_t sums = int64_t{c.block_m} * c.block_n * 4, others = ceil_div(k_blocks, share);
    blocks += share;
    meeting = 2000 + sums / 24 + others * sums / 40;
  }
  const int64_t finish = 600 + int64_t{c.block_m} * c.block_n / 8;
  const int64_t compute = blocks * block + meeting + (rounds + (meeting > 0)) * finish;
  const int64_t bytes = active * p.n * k_blocks * Int4Tile{}.bytes() / kInt4TileRows +
                        int64_t{2} * p.m * (int64_t{p.k} + p.n);
  const int64_t memory = bytes / (17 * sms) + meeting + finish;
  // Half an SM starts under the product before.
  const int64_t start = c.ctas_per_sm() == 1 ? 2000 : 0;
  return (compute > memory ? compute : memory) + compute / 8 + start;
}

// `asked`, or, if that is -1, the configuration of least modelled cost.
constexpr int choose_w4_gemm(const W4GemmProblem& p, int asked, int sms) {
  if (asked >= 0) return asked;
  int best = 0;
  for (int i = 1; i < kNumW4GemmConfigs; ++i)
    if (modelled_cost(kW4GemmConfigs[i], p, sms) < modelled_cost(kW4GemmConfigs[best], p, sms))
      best = i;
  return best;
}

}  // namespace l4k
