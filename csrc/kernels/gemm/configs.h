// What is compiled, and which row a problem gets. Integers only.
#pragma once
#include <array>
#include <cstdint>

#include "tile/base.h"
#include "tile/schedule.h"

namespace l4k {

// Two consumer warpgroups; a stage holds 128 bytes of K of both operands. The tensor core
// multiplies 64 rows a warpgroup by 8 to 256 columns: rows of A by rows of B, or, swapped, rows of
// B (weights) by rows of A (tokens), so that few tokens leave no lane idle.
struct GemmConfig {
  bool fp8;
  // e4m3: add each 128 of K to float32 registers: a second set of accumulators, so no 256 columns.
  bool promote;
  // erf-GELU on 64 registers a thread, which only the vision tower needs (swapped rows have it).
  bool gelu;
  bool swap;
  int block_m, block_n;  // rows and columns of D, one CTA
  int stages;
  // Neighbouring tiles of a cluster: CTAs in one column of tiles share B's box, in one row A's.
  int cluster_m = 1, cluster_n = 1;

  L4K_HD constexpr int cluster() const { return cluster_m * cluster_n; }
  // SwiGLU to e4m3: 256 columns of N share a scale, and two CTAs hold them.
  L4K_HD constexpr bool fp8_results() const {
    return fp8 && block_n == 128 && (swap || cluster_n == 2);
  }
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
  // The staged result: bf16 boxes for TMA, 128 x 128 at a time, or float32 that the cluster's CTAs
  // add up.
  L4K_HD constexpr int staging_bytes() const {
    return swap ? block_m * pitch() * 4 : 128 * 128 * 2;
  }
  // Few accumulators: leaves half of the SM to its neighbours in the stream, so that the next
  // product starts, and fetches its weights, under the end of this one.
  L4K_HD constexpr int ctas_per_sm() const { return right() <= 64 ? 2 : 1; }
  L4K_HD constexpr int producer_registers() const { return ctas_per_sm() == 2 ? 32 : 40; }
  L4K_HD constexpr int consumer_registers() const { return ctas_per_sm() == 2 ? 104 : 232; }
  // With schedule and barriers.
  L4K_HD constexpr int smem_bytes() const {
    return round_up(stages * (stage_bytes() + 16) + staging_bytes() + 2 * kMaxExperts * 4 + 128,
                    1024);
  }
};

constexpr GemmConfig kGemmConfigs[] = {
    // bf16
    {false, false, false, false, 128, 256, 4},        // 0: the largest wgmma
    {false, false, false, false, 128, 128, 6},        // 1: twice the tiles
    {false, false, true, false, 128, 128, 6, 1, 2},   // 2: with GELU, pairs share A
    {false, false, false, false, 128, 256, 4, 2, 1},  // 3: pairs share B: big products
    // e4m3; promoted pairs share A, and their two tiles are one block of 128 SwiGLU results
    {true, true, false, false, 128, 128, 6, 1, 2},   // 4: promoted
    {true, true, false, false, 256, 128, 4, 1, 2},   // 5: promoted, in two sub-tiles: big products
    {true, false, false, false, 128, 256, 4},        // 6: fast accumulation
    {true, false, false, false, 128, 256, 4, 2, 1},  // 7: fast, pairs share B
    // few rows of A
    {false, false, false, true, 16, 128, 5},   // 8: bf16
    {false, false, false, true, 64, 128, 3},   // 9
    {false, false, false, true, 128, 128, 4},  // 10
    {true, true, false, true, 16, 128, 5},     // 11: promoted
    {true, true, false, true, 64, 128, 3},     // 12
    {true, true, false, true, 128, 128, 4},    // 13
    {true, false, false, true, 16, 128, 5},    // 14: fast
    {true, false, false, true, 64, 128, 3},    // 15
    {true, false, false, true, 128, 128, 4},   // 16
};
constexpr int kNumGemmConfigs = sizeof(kGemmConfigs) / sizeof(kGemmConfigs[0]);
constexpr int kMaxSplits = 8;

// The one statement of what a row may be.
constexpr bool valid(const GemmConfig& c) {
  return c.left() % 128 == 0 && c.right() % 8 == 0 && c.right() <= 256 &&
         c.right() * (c.sub_tiles() + c.promote) <= 3 * 128 &&  // 192 registers of accumulators
         c.stages >= 2 && (c.fp8 || !c.promote) && !(c.swap && c.gelu) &&
         (c.sub_tiles() == 1 || (c.promote && !c.swap)) && (c.cluster_m == 1 || c.cluster_n == 1) &&
         !(c.swap && c.cluster() > 1) && c.smem_bytes() <= 228 * 1024 / c.ctas_per_sm() - 1024;
}
constexpr bool all_valid() {
  for (const GemmConfig& c : kGemmConfigs)
    if (!valid(c)) return false;
  return true;
}
static_assert(all_valid());

struct GemmProblem {
  int m, n, k;  // elements
  int num_experts;
  bool fp8, fast_accum, gelu;
  bool block_scales;  // scales that change along K
  bool fp8_out;       // SwiGLU to e4m3 with 1x128 scales
};

// Whether a row computes the problem at all; fast_accum is a preference and not part of it.
constexpr bool can_run(const GemmConfig& c, const GemmProblem& p) {
  if (c.fp8 != p.fp8 || (p.block_scales && !c.promote)) return false;
  if (p.fp8_out && !c.fp8_results()) return false;
  return c.swap || c.gelu == p.gelu;
}

// CTAs that work on one tile of the schedule: a cluster of the table, the two that share a scale,
// or the splits of K.
constexpr int ctas_per_tile(const GemmConfig& c, const GemmProblem& p, int splits) {
  if (!c.swap) return c.cluster();
  return p.fp8_out ? 2 : splits;
}

// What a choice needs to know of a GPU: its SMs, and how many clusters of each size run at once with
// one CTA per SM. One cluster too many is a second wave. A cluster takes whole TPCs (two SMs) of one
// GPC, and how many a GPC has differs between GPUs of one kind: launches ask the driver.
struct GemmMachine {
  int sms;
  int clusters[kMaxSplits + 1];

  // 132 SMs as an H200 was found to have them, fewer in one GPC: for tests.
  static constexpr GemmMachine assumed(int sms) {
    constexpr int kTpcs[] = {9, 9, 9, 9, 9, 8, 8, 5};
    GemmMachine machine{sms, {}};
    for (int ctas = 1; ctas <= kMaxSplits; ++ctas) {
      int fit = 0;
      for (int tpcs : kTpcs) fit += tpcs / ceil_div(ctas, 2);
      machine.clusters[ctas] = ctas <= 2 || sms != 132 ? sms / ctas : fit;
    }
    return machine;
  }
  // Rows that leave half of an SM to a neighbour have room to move.
  L4K_HD constexpr int slots(const GemmConfig& c, int ctas) const {
    const int twice = 2 * clusters[ctas], whole = sms / ctas;
    return c.ctas_per_sm() == 1 ? clusters[ctas] : twice < whole ? twice : whole;
  }
};

// Cycles, from what one SM can do in one: multiply 64 x 8 x 32 bytes in 4, take 46 bytes from L2 and 17
// from HBM, move 128 through its shared memory, which the tensor core's operands share with what
// arrives. The longest of these is the main loop of a tile; then comes what a tile costs besides: its
// accumulators' way out, and, where K is split, sums that cross the cluster. Published rates gave 38
// bytes from L2, and a probe of distinct lines 40; row 1, whose boxes many SMs share, was measured
// at 47. The way out is what hardware counters and a timeline left beside the main loop.
constexpr int64_t modelled_cost(const GemmConfig& c, const GemmProblem& p, int splits,
                                const GemmMachine& machine) {
  const int ctas = ctas_per_tile(c, p, splits);
  const int64_t slots = machine.slots(c, ctas);
  if (slots == 0) return INT64_MAX;
  const int64_t tile_m = int64_t{c.block_m} * c.cluster_m;
  const int64_t tile_n = int64_t{c.block_n} * (c.swap && p.fp8_out ? 2 : c.cluster_n);
  // Of an expert's last tile, or sub-tile, half is empty on average; experts without rows have none.
  const int64_t active = p.m < p.num_experts ? p.m : p.num_experts;
  const auto pieces = [&](int64_t rows) {
    const int64_t all = ceil_div<int64_t>(p.m, rows) + (p.num_experts > 1 ? active / 2 : 0);
    return all < active ? active : all;
  };
  const int64_t row_tiles = pieces(tile_m), column_tiles = ceil_div<int64_t>(p.n, tile_n);
  // Those of a pair that shares B are flat where only half would be full, and share nothing.
  const int64_t halves = pieces(tile_m / c.cluster_m);
  const int64_t tail = c.cluster_m > 1 ? 2 * row_tiles - halves : 0;
  const int64_t tiles = ceil_div<int64_t>(halves * column_tiles, c.cluster_m);
  const int64_t waves = ceil_div(tiles, slots);

  // Of one K block. An expert's last tile may have fewer sub-tiles than it has room for.
  const int64_t sub_tiles = pieces(tile_m / c.sub_tiles()), right = c.right();
  const int64_t operands =
      8 * (2048 + 32 * right) / 128;  // of both warpgroups' products of a sub-tile
  const int64_t products = right >= 64 ? 4 * right : operands;
  const int64_t rows_in = c.block_m / c.cluster_n;
  const int64_t columns_in = c.block_n / c.cluster_m * (halves + tail) / halves;
  const int64_t promotion = c.promote ? 5 * right / 2 + 280 : 0;
  int64_t block = sub_tiles * products / row_tiles;
  const auto at_least = [&](int64_t cycles) { block = block > cycles ? block : cycles; };
  at_least(128 * (rows_in + columns_in) / 46);
  at_least(c.block_m + c.block_n + sub_tiles * operands / row_tiles);
  at_least(sub_tiles * promotion / row_tiles);

  const int64_t k_blocks = ceil_div(ceil_div(p.k, c.block_k()), splits);
  int64_t finish = 32 * right * c.sub_tiles();
  if (c.swap) finish = splits == 1 ? 600 + 115 * c.block_m : 3000 + 80 * c.block_m;
  const int64_t compute = waves * (k_blocks * block + finish);
  const int64_t element = p.fp8 ? 1 : 2;
  const int64_t bytes = (active * p.n + p.m) * p.k * element + int64_t{2} * p.m * p.n;
  const int64_t memory = bytes / (17 * machine.sms);
  // Of two rows at the floor the one with less to do hides its start and end better; half an SM
  // starts under the product before.
  const int64_t start = c.ctas_per_sm() == 1 ? 2000 : 0;
  return (compute > memory ? compute : memory) + compute / 8 + start;
}

// A row of the table and into how many parts it cuts K (0: as the model says). Callers write it as
// one number: splits * 100 + row, -1 for neither, -2 for what the model says without tuned rows.
struct GemmChoice {
  int config, splits;

  static constexpr GemmChoice of(int number) {
    return number < 0 ? GemmChoice{number, 0} : GemmChoice{number % 100, number / 100};
  }
};
static_assert(kNumGemmConfigs <= 100);

// What was measured to be the best for a product, up to so many rows of A; -1 where the model's
// choice was as good.
struct TunedGemm {
  int n, k, num_experts;
  bool fp8, fast_accum;
  int max_m;
  int choice;
};
constexpr TunedGemm kTunedGemms[] = {
#include "kernels/gemm/tuned.h"
};

// Splits of K: only swapped rows, and as long as every CTA keeps a K block.
constexpr int max_splits(const GemmConfig& c, const GemmProblem& p) {
  if (!c.swap || p.fp8_out) return 1;
  const int k_blocks = ceil_div(p.k, c.block_k());
  return k_blocks < kMaxSplits ? k_blocks : kMaxSplits;
}

// Whether `asked` names a row that computes the problem, and splits that it can make.
constexpr bool can_run(GemmChoice asked, const GemmProblem& p) {
  return asked.config >= 0 && asked.config < kNumGemmConfigs &&
         can_run(kGemmConfigs[asked.config], p) &&
         asked.splits <= max_splits(kGemmConfigs[asked.config], p);
}

// A tuned row, else the one of least modelled cost among those that are `asked` for; {-1, 1} if none
// of them can run the problem.
constexpr GemmChoice choose_gemm(const GemmProblem& p, GemmChoice asked,
                                 const GemmMachine& machine) {
  if (asked.config == -1) {
    for (const TunedGemm& t : kTunedGemms) {
      if (t.n != p.n || t.k != p.k || t.num_experts != p.num_experts || t.fp8 != p.fp8 ||
          t.fast_accum != p.fast_accum || p.m > t.max_m)
        continue;
      if (can_run(GemmChoice::of(t.choice), p)) return GemmChoice::of(t.choice);
      break;
    }
  }
  GemmChoice best{-1, 1};
  int64_t best_cost = INT64_MAX;
  for (int i = 0; i < kNumGemmConfigs; ++i) {
    const GemmConfig& c = kGemmConfigs[i];
    if (!can_run(c, p) || (asked.config >= 0 && i != asked.config)) continue;
    if (asked.config < 0 && p.fp8 && c.promote == (p.fast_accum && !p.block_scales)) continue;
    for (int splits = 1; splits <= max_splits(c, p); ++splits) {
      if (asked.splits > 0 && splits != asked.splits) continue;
      const int64_t cost = modelled_cost(c, p, splits, machine);
      if (cost < best_cost) {
        best = {i, splits};
        best_cost = cost;
      }
    }
  }
  return best;
}

}  // namespace l4k
