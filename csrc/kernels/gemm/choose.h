// Which kernel and configuration computes a problem, and into how many splits of K. Integers only.
#pragma once
#include <cstdint>

#include "kernels/gemm/configs.h"
#include "tile/few_rows.h"

namespace l4k {

struct GemmProblem {
  int m, n, k;  // elements
  int num_experts;
  bool fp8, fast_accum, gelu, swiglu;
  bool block_scales;  // scales that change along K
  bool fp8_out;       // SwiGLU to e4m3 with 1x128 scales
  bool can_stream;    // csrc/kernels/stream_gemm computes it as well

  bool operator==(const GemmProblem&) const = default;
};

// Whether a configuration computes the problem at all; fast_accum is a preference and not part of it.
constexpr bool can_run(const GemmConfig& c, const GemmProblem& p) {
  if (c.fp8 != p.fp8 || (p.block_scales && !c.promote)) return false;
  if (p.fp8_out && !c.fp8_results()) return false;
  if (p.swiglu && !c.swiglu()) return false;
  return c.swap || c.gelu == p.gelu;
}

// CTAs that work on one tile of the schedule: a cluster of the configuration, the two that share a
// scale, or the splits of K.
constexpr int ctas_per_tile(const GemmConfig& c, const GemmProblem& p, int splits) {
  if (!c.swap && splits == 1) return c.cluster();
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
  // Configurations that leave half of an SM to a neighbour have room to move.
  L4K_HD constexpr int slots(const GemmConfig& c, int ctas) const {
    const int twice = 2 * clusters[ctas], whole = sms / ctas;
    return c.ctas_per_sm() == 1 ? clusters[ctas] : twice < whole ? twice : whole;
  }
};

// Cycles, from what one SM can do in one: multiply 64 x 8 x 32 bytes in 4, take 46 bytes from L2 and 17
// from HBM, move 128 through its shared memory, which the tensor core's operands share with what
// arrives. The longest of these is the main loop of a tile; then comes what a tile costs besides: its
// accumulators' way out, and, where K is split, sums that cross the cluster. Published rates gave 38
// bytes from L2, and a probe of distinct lines 40; bf16_128x128, whose boxes many SMs share, was
// measured at 47. The way out is what hardware counters and a timeline left beside the main loop.
constexpr int64_t modelled_cost(const GemmConfig& c, const GemmProblem& p, int splits,
                                const GemmMachine& machine) {
  const int ctas = ctas_per_tile(c, p, splits);
  const int64_t slots = machine.slots(c, ctas);
  if (slots == 0) return INT64_MAX;
  const bool halves_of_k = !c.swap && splits > 1;  // by a pair that shares nothing
  const int shared_by = halves_of_k ? 1 : c.cluster_m;
  const int64_t tile_m = int64_t{c.block_m} * shared_by;
  const int64_t tile_n = int64_t{c.block_n} * (c.swap && p.fp8_out ? 2 : c.cluster_n);
  // Of an expert's last tile, or sub-tile, half is empty on average; experts without rows have none.
  const int64_t active = p.m < p.num_experts ? p.m : p.num_experts;
  const auto tiles_of = [&](int64_t rows) {
    const int64_t all = ceil_div<int64_t>(p.m, rows) + (p.num_experts > 1 ? active / 2 : 0);
    return all < active ? active : all;
  };
  const int64_t row_tiles = tiles_of(tile_m), column_tiles = ceil_div<int64_t>(p.n, tile_n);
  // A pair that shares B takes a tail tile where only half of its own would be full; its CTAs then
  // share nothing.
  const int64_t halves = tiles_of(c.block_m);
  const int64_t tail = shared_by > 1 ? 2 * row_tiles - halves : 0;
  const int64_t tiles = ceil_div<int64_t>(halves * column_tiles, shared_by);
  const int64_t waves = ceil_div(tiles, slots);

  // Of one K block. An expert's last tile may have fewer sub-tiles than it has room for.
  const int64_t sub_tiles = tiles_of(tile_m / c.sub_tiles()), right = c.right();
  const int64_t operands = 8 * (2048 + 32 * right) / 128;  // both warpgroups', of a sub-tile
  const int64_t products = right >= 64 ? 4 * right : operands;
  const int64_t rows_in = c.block_m / c.cluster_n;
  const int64_t columns_in = c.block_n / shared_by * (halves + tail) / halves;
  const int64_t promotion = c.promote ? 5 * right / 2 + 280 : 0;
  int64_t block = sub_tiles * products / row_tiles;
  const auto at_least = [&](int64_t cycles) { block = block > cycles ? block : cycles; };
  at_least(128 * (rows_in + columns_in) / 46);
  at_least(c.block_m + c.block_n + sub_tiles * operands / row_tiles);
  at_least(sub_tiles * promotion / row_tiles);

  const int64_t k_blocks = ceil_div(ceil_div(p.k, c.block_k()), splits);
  int64_t finish = 32 * right * c.sub_tiles();
  if (halves_of_k) finish += 3000 + 16 * right;
  if (c.swap) finish = splits == 1 ? 600 + 115 * c.block_m : 3000 + 80 * c.block_m;
  const int64_t compute = waves * (k_blocks * block + finish);
  const int64_t element = p.fp8 ? 1 : 2;
  const int64_t bytes = (active * p.n + p.m) * p.k * element + int64_t{2} * p.m * p.n;
  const int64_t memory = bytes / (17 * machine.sms);
  // Of two configurations at the floor the one with less to do hides its start and end better; half
  // an SM starts under the product before.
  const int64_t start = c.ctas_per_sm() == 1 ? 2000 : 0;
  return (compute > memory ? compute : memory) + compute / 8 + start;
}

// A configuration and its splits of K (0: as the model says). Callers write it as one number:
// 100 * splits + configuration, or one of the constants.
struct GemmChoice {
  static constexpr int kTuned = -1;     // the one that was measured to be best, else the model's
  static constexpr int kModelled = -2;  // the model's, whatever was measured
  static constexpr int kStream = -3;    // no configuration: csrc/kernels/stream_gemm
  static constexpr int kNone = -4;      // nothing computes the problem
  int config, splits;

  bool operator==(const GemmChoice&) const = default;
  static constexpr GemmChoice of(int number) {
    return number < 0 ? GemmChoice{number, 0} : GemmChoice{number % 100, number / 100};
  }
};
static_assert(kNumGemmConfigs <= 100);

// The configuration that was measured to be the best for a product, up to this many rows of A, among
// those up to a generation.
struct TunedGemm {
  int n, k, num_experts;
  bool fp8, fast_accum;
  int max_m;
  int generation = 0;
  GemmChoice choice = {GemmChoice::kModelled, 0};  // the model's was as good
};
constexpr TunedGemm kTunedGemms[] = {
#include "kernels/gemm/tuned.h"
};

// Splits of K: as long as every CTA keeps a K block. A pair fills its stages in step, so that two
// splits must be equal.
constexpr int max_splits(const GemmConfig& c, const GemmProblem& p) {
  const int k_blocks = ceil_div(p.k, c.block_k());
  if (c.split_k) return 2 - k_blocks % 2;
  if (!c.swap || p.fp8_out) return 1;
  return k_blocks < kMaxSplits ? k_blocks : kMaxSplits;
}

// Up to how many rows of A a problem streams.
constexpr int streamed_rows(const GemmProblem& p) {
  return p.num_experts == 1 ? kFewRows : kFewRaggedRows;
}

// Whether `asked` is a configuration that computes the problem, and splits that it can make.
constexpr bool can_run(GemmChoice asked, const GemmProblem& p) {
  if (asked.config == GemmChoice::kStream) return p.can_stream;
  return asked.config >= 0 && asked.config < kNumGemmConfigs &&
         can_run(kGemmConfigs[asked.config], p) &&
         asked.splits <= max_splits(kGemmConfigs[asked.config], p);
}

// The configuration of least modelled cost among those that are `asked` for, up to a generation.
constexpr GemmChoice choose_config(const GemmProblem& p, GemmChoice asked,
                                   const GemmMachine& machine, int generation = INT32_MAX) {
  GemmChoice best{GemmChoice::kNone, 1};
  int64_t best_cost = INT64_MAX;
  const bool precise = !p.fast_accum || p.block_scales;
  for (int i = 0; i < kNumGemmConfigs; ++i) {
    const GemmConfig& c = kGemmConfigs[i];
    if (!can_run(c, p) || c.generation > generation || (asked.config >= 0 && i != asked.config))
      continue;
    // Fast accumulation is a permission: only of swapped tiles there are both kinds, and of that for 16
    // tokens the promoted one, which was under 1 % slower.
    const bool other = precise ? !c.promote : c.promote && c.swap && c.right() > 16;
    if (asked.config < 0 && p.fp8 && other) continue;
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

// What was measured to be best, unless a configuration that was not there yet is modelled to be over
// 10 % better.
constexpr GemmChoice choose_tuned(const GemmProblem& p, const TunedGemm& tuned,
                                  const GemmMachine& machine) {
  constexpr GemmChoice kAny = {GemmChoice::kModelled, 0};
  const GemmChoice old =
      can_run(tuned.choice, p) ? tuned.choice : choose_config(p, kAny, machine, tuned.generation);
  const GemmChoice best = choose_config(p, kAny, machine);
  if (old.config < 0 || kGemmConfigs[best.config].generation <= tuned.generation) return old;
  const auto cost = [&](GemmChoice choice) {
    return modelled_cost(kGemmConfigs[choice.config], p, choice.splits, machine);
  };
  return 10 * cost(best) < 9 * cost(old) ? best : old;
}

// What is asked for; the tuned choice; few rows of A stream; else the model's.
constexpr GemmChoice choose_gemm(const GemmProblem& p, GemmChoice asked,
                                 const GemmMachine& machine) {
  const bool few = asked.config < 0 && p.m <= streamed_rows(p) && p.can_stream;
  if (asked.config == GemmChoice::kTuned) {
    for (const TunedGemm& t : kTunedGemms) {
      if (t.n != p.n || t.k != p.k || t.num_experts != p.num_experts || t.fp8 != p.fp8 ||
          t.fast_accum != p.fast_accum || p.m > t.max_m)
        continue;
      if (few && !can_run(t.choice, p)) break;
      return choose_tuned(p, t, machine);
    }
  }
  const bool stream = asked.config == GemmChoice::kStream;
  if (few || (stream && p.can_stream)) return {GemmChoice::kStream, 1};
  return stream ? GemmChoice{GemmChoice::kNone, 1} : choose_config(p, asked, machine);
}

}  // namespace l4k
