// The row of the GEMM's table that every Llama 4 product gets: it can run it, it is not the wrong
// kind, and the whole table is in use. Prints the choices.
#include <cstdio>
#include <set>

#include "expect.h"
#include "kernels/gemm/configs.h"

namespace {

constexpr l4k::GemmMachine kMachine = l4k::GemmMachine::assumed(132);

struct Product {
  const char* name;
  int n, k, num_experts;
};

// Scout and Maverick; Behemoth is an estimate, its weights were never published.
constexpr Product kProducts[] = {
    {"qkv", 7168, 5120, 1},
    {"o", 5120, 5120, 1},
    {"gate_up", 16384, 5120, 1},
    {"down", 5120, 8192, 1},
    {"head", 202048, 5120, 1},
    {"gate_up, 16 experts", 16384, 5120, 16},
    {"down, 16 experts", 5120, 8192, 16},
    {"gate_up, 128 experts", 16384, 5120, 128},
    {"down, 128 experts", 5120, 8192, 128},
    {"behemoth qkv", 18432, 16384, 1},
    {"behemoth gate_up, 16 experts", 53248, 16384, 16},
    {"behemoth down, 16 experts", 16384, 26624, 16},
};
constexpr int kRows[] = {1, 8, 16, 64, 128, 1024, 4096, 8192};

l4k::GemmChoice check(const Product& product, l4k::GemmProblem p) {
  const l4k::GemmChoice choice = l4k::choose_gemm(p, {-1, 0}, kMachine);
  EXPECT(choice.config >= 0, product.name << ", M " << p.m);
  const l4k::GemmConfig& c = l4k::kGemmConfigs[choice.config];
  EXPECT(l4k::can_run(c, p), product.name << ", M " << p.m);
  EXPECT(!p.fp8 || c.promote || p.fast_accum, product.name << ", M " << p.m);
  EXPECT(choice.splits >= 1 && choice.splits <= l4k::max_splits(c, p), product.name);
  EXPECT(l4k::ctas_per_tile(c, p, choice.splits) <= 8, "a cluster has at most 8 CTAs");
  return choice;
}

void expect_sense(const Product& product, int m, const l4k::GemmConfig& c) {
  const int rows = m / product.num_experts;
  if (rows <= 16) EXPECT(c.swap, product.name << ", M " << m << ": few rows waste 64-row tiles");
  if (rows >= 1024) EXPECT(!c.swap, product.name << ", M " << m << ": many rows need big tiles");
  // Large products share boxes: L2 does not feed 132 lone tiles.
  if (rows >= 4096) EXPECT(c.cluster() == 2, product.name << ", M " << m);
}

}  // namespace

int main() {
  std::set<int> used;
  for (const Product& product : kProducts) {
    for (int m : kRows) {
      std::printf("%-30s M %5d: row and splits", product.name, m);
      for (int kind = 0; kind < 4; ++kind) {  // bf16, promoted, fast, promoted with e4m3 result
        const bool fp8_out = kind == 3;
        const l4k::GemmChoice choice =
            check(product, {m, product.n, product.k, product.num_experts, kind > 0, kind == 2,
                            false, fp8_out, fp8_out});
        expect_sense(product, m, l4k::kGemmConfigs[choice.config]);
        used.insert(choice.config);
        std::printf("  %2d/%d", choice.config, choice.splits);
      }
      std::printf("\n");
    }
  }
  // Vision's rows of K; any N that is a multiple of 8 finds a row, with GELU as well.
  for (int n = 8; n <= 4096; n += 8)
    for (int m : {1, 17, 577, 4096})
      for (bool gelu : {false, true})
        used.insert(
            check({"small", n, 1408, 1}, {m, n, 1408, 1, false, false, gelu, false, false}).config);
  // Scales along K need promotion, whatever was asked for.
  const l4k::GemmProblem blocks{4096, 5120, 5120, 1, true, true, false, true, false};
  EXPECT(l4k::kGemmConfigs[l4k::choose_gemm(blocks, {-1, 0}, kMachine).config].promote,
         "block scales");
  const l4k::GemmProblem few{9, 128, 1920, 1, false, false, false, false, false};
  const l4k::GemmChoice three = l4k::choose_gemm(few, l4k::GemmChoice::of(308), kMachine);
  EXPECT(three.config == 8 && three.splits == 3, "splits that are asked for");
  EXPECT(!l4k::can_run(l4k::GemmChoice::of(200), few), "unswapped rows have no splits");
  EXPECT(l4k::choose_gemm(blocks, {6, 0}, kMachine).config == -1,
         "a fast row ignores scales along K");
  // What tests/kernels/test_gemm_kernel.py counts on: one tile is split over all SMs.
  for (int sms : {1, 2, 3, 5, 8, 132}) {
    const l4k::GemmProblem one_tile{13, 128, 1920, 1, false, false, false, false, false};
    const int splits = l4k::choose_gemm(one_tile, {8, 0}, l4k::GemmMachine::assumed(sms)).splits;
    EXPECT(splits == (sms < 8 ? sms : 8), sms << " SMs, " << splits << " splits");
  }
  for (int i = 0; i < l4k::kNumGemmConfigs; ++i)
    EXPECT(used.count(i) == 1, "row " << i << " is idle");
  return 0;
}
