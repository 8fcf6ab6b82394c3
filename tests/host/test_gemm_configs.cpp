// The kernel and configuration that every Llama 4 product gets: it can run it, it is not the wrong
// kind, it fills the SMs at middling M, and the whole table is in use. Prints the choices.
#include <cstdio>
#include <set>
#include <string>

#include "expect.h"
#include "kernels/gemm/choose.h"
#include "kernels/stream_gemm/schedule.h"

namespace {

constexpr l4k::GemmMachine kMachine = l4k::GemmMachine::assumed(132);

struct Product {
  const char* name;
  int n, k, num_experts;
  bool swiglu = false;
};

// Scout and Maverick; Behemoth is an estimate, its weights were never published.
constexpr Product kProducts[] = {
    {"qkv", 7168, 5120, 1},
    {"o", 5120, 5120, 1},
    {"gate_up", 16384, 5120, 1, true},
    {"down", 5120, 8192, 1},
    {"head", 202048, 5120, 1},
    {"gate_up, 17 experts", 16384, 5120, 17, true},
    {"down, 17 experts", 5120, 8192, 17},
    {"gate_up, 129 experts", 16384, 5120, 129, true},
    {"down, 129 experts", 5120, 8192, 129},
    {"behemoth qkv", 18432, 16384, 1},
    {"behemoth gate_up, 16 experts", 53248, 16384, 16, true},
    {"behemoth down, 16 experts", 16384, 26624, 16},
};
constexpr l4k::GemmChoice kAny = {l4k::GemmChoice::kTuned, 0};
constexpr int kRows[] = {1, 8, 16, 64, 128, 1024, 4096, 8192};

bool can_stream(const l4k::GemmProblem& p) {
  const auto format = p.fp8 ? l4k::StreamFormat::kFp8 : l4k::StreamFormat::kBf16;
  return !p.fp8_out && l4k::can_stream(format, p.m, p.k, p.num_experts);
}

l4k::GemmChoice check(const Product& product, l4k::GemmProblem p) {
  p.can_stream = can_stream(p);
  const l4k::GemmChoice choice = l4k::choose_gemm(p, kAny, kMachine);
  const bool few = p.m <= (p.num_experts == 1 ? 16 : 32) && !p.fp8_out;
  EXPECT((choice.config == l4k::GemmChoice::kStream) == few, product.name << ", M " << p.m);
  if (few) {
    EXPECT(l4k::can_run(choice, p) && choice.splits == 1, product.name << ", M " << p.m);
    return choice;
  }
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

// Of the SMs' time until the last tile of a dense product is done, the share that multiplies elements
// of D: idle SMs of the last wave, columns past N and rows past M are waste.
double wave_efficiency(const l4k::GemmConfig& c, const l4k::GemmProblem& p, int splits) {
  const int ctas = l4k::ctas_per_tile(c, p, splits);
  const bool pair = c.cluster_m > 1 && splits == 1;
  const int width = c.block_n * (c.swap && p.fp8_out ? 2 : c.cluster_n);
  const int row_end = p.m;
  l4k::RaggedSchedule schedule{.num_experts = 1,
                               .block_m = c.block_m * (pair ? 2 : 1),
                               .block_n = width,
                               .column_tiles = l4k::ceil_div(p.n, width),
                               .raster = 8,
                               .tail_tiles = pair,
                               .row_ends = &row_end,
                               .tile_ends = nullptr};
  const int waves = l4k::ceil_div(schedule.tiles(p.m), kMachine.slots(c, ctas));
  const int k_blocks = l4k::ceil_div(p.k, c.block_k());
  const double longest = double(l4k::ceil_div(k_blocks, splits)) / k_blocks;
  const double sms = double(kMachine.sms) / c.ctas_per_sm() * waves;
  return double(p.m) * p.n / (sms * c.block_m * c.block_n * longest);
}

// Middling M, where whole waves are few: at least 85 % from 512 rows on.
void check_waves(const Product& product, bool fp8, bool fp8_out) {
  for (int m : {256, 512, 1024, 2048}) {
    l4k::GemmProblem p{};
    p.m = m, p.n = product.n, p.k = product.k, p.num_experts = 1, p.fp8 = fp8;
    p.swiglu = product.swiglu, p.fp8_out = p.block_scales = fp8_out;
    const l4k::GemmChoice now = l4k::choose_gemm(p, kAny, kMachine);
    const l4k::GemmChoice before =
        l4k::choose_config(p, {l4k::GemmChoice::kModelled, 0}, kMachine, 0);
    const auto share = [&](l4k::GemmChoice choice) {
      return 100 * wave_efficiency(l4k::kGemmConfigs[choice.config], p, choice.splits);
    };
    std::printf("| %s | %s%s | %d | `%s` / %d | %.0f %% | `%s` / %d | %.0f %% |\n", product.name,
                fp8 ? "e4m3" : "bf16", fp8_out ? " to e4m3" : "", m,
                l4k::kGemmConfigs[before.config].name, before.splits, share(before),
                l4k::kGemmConfigs[now.config].name, now.splits, share(now));
    EXPECT(m == 256 || share(now) >= 85, product.name << ", M " << m << ": " << share(now) << " %");
  }
}

// A name says what the fields say.
std::string name_of(const l4k::GemmConfig& c) {
  const auto by = [](int a, int b) { return "_" + std::to_string(a) + "x" + std::to_string(b); };
  std::string name = c.fp8 ? "fp8" : "bf16";
  if (c.swap) name += "_swap";
  name += by(c.block_m, c.block_n);
  if (c.cluster() > 1) name += by(c.cluster_m, c.cluster_n);
  if (c.promote) name += "_promote";
  if (c.gelu) name += "_gelu";
  return name;
}

void check_names() {
  std::set<std::string> names;
  for (const l4k::GemmConfig& c : l4k::kGemmConfigs) {
    EXPECT(c.name == name_of(c), c.name << " is " << name_of(c));
    EXPECT(names.insert(c.name).second, c.name << " twice");
  }
}

// Every kind of a product, a line for each M.
void check_products(std::set<int>& used) {
  for (const Product& product : kProducts) {
    for (int m : kRows) {
      std::printf("%-30s M %5d:", product.name, m);
      for (int kind = 0; kind < 4; ++kind) {  // bf16, promoted, fast, promoted with e4m3 result
        const bool fp8_out = kind == 3;
        const l4k::GemmChoice choice = check(product, {.m = m,
                                                       .n = product.n,
                                                       .k = product.k,
                                                       .num_experts = product.num_experts,
                                                       .fp8 = kind > 0,
                                                       .fast_accum = kind == 2,
                                                       .gelu = false,
                                                       .swiglu = product.swiglu,
                                                       .block_scales = fp8_out,
                                                       .fp8_out = fp8_out,
                                                       .can_stream = false});
        if (choice.config < 0) {
          std::printf("  stream");
          continue;
        }
        expect_sense(product, m, l4k::kGemmConfigs[choice.config]);
        used.insert(choice.config);
        std::printf("  %s/%d", l4k::kGemmConfigs[choice.config].name, choice.splits);
      }
      std::printf("\n");
    }
  }
}

l4k::GemmProblem bf16(int m, int n, int k) {
  l4k::GemmProblem p{};
  p.m = m, p.n = n, p.k = k, p.num_experts = 1;
  return p;
}

void check_vision(std::set<int>& used) {
  // The adapter, of one tile of an image.
  used.insert(check({"adapter", 4096, 5632, 1}, bf16(144, 4096, 5632)).config);
  // The tower's rows of K; any N that is a multiple of 8 finds a configuration, with GELU as well.
  for (int n = 8; n <= 4096; n += 8)
    for (int m : {1, 17, 577, 4096})
      for (bool gelu : {false, true}) {
        l4k::GemmProblem small = bf16(m, n, 1408);
        small.gelu = gelu;
        used.insert(check({"small", n, 1408, 1}, small).config);
      }
}

// Only what was asked for, and only what can run.
void check_asked() {
  // Scales along K need promotion, whatever was asked for.
  l4k::GemmProblem blocks = bf16(4096, 5120, 5120);
  blocks.fp8 = blocks.fast_accum = blocks.block_scales = true;
  EXPECT(l4k::kGemmConfigs[l4k::choose_gemm(blocks, kAny, kMachine).config].promote,
         "block scales");
  constexpr int kFast = l4k::gemm_config("fp8_128x256");
  EXPECT(l4k::choose_gemm(blocks, {kFast, 0}, kMachine).config == l4k::GemmChoice::kNone,
         "fast accumulation ignores scales along K");
  // A list of items has room for so many rows; e4m3 results need two tiles side by side.
  EXPECT(can_stream(bf16(56, 5120, 5120)) && !can_stream(bf16(57, 5120, 5120)), "");
  l4k::GemmProblem quantised = bf16(9, 128, 1920);
  quantised.fp8 = quantised.fp8_out = true;
  EXPECT(l4k::choose_gemm(quantised, {l4k::GemmChoice::kStream, 0}, kMachine).config ==
             l4k::GemmChoice::kNone,
         "no other kernel than the one asked for");
  l4k::GemmProblem gated = bf16(512, 5120, 5120);
  gated.swiglu = true;
  EXPECT(!l4k::can_run(l4k::GemmChoice{l4k::gemm_config("bf16_128x160_2x1"), 1}, gated),
         "half of 160 columns are no whole boxes");
}

void check_splits() {
  constexpr int kSwap = l4k::gemm_config("bf16_swap_16x128"),
                kPair = l4k::gemm_config("bf16_128x80_2x1");
  const l4k::GemmProblem few = bf16(9, 128, 1920);
  const l4k::GemmChoice three = l4k::choose_gemm(few, l4k::GemmChoice::of(300 + kSwap), kMachine);
  EXPECT(three.config == kSwap && three.splits == 3, "splits that are asked for");
  const l4k::GemmChoice unswapped{l4k::gemm_config("bf16_128x256"), 2};
  EXPECT(!l4k::can_run(unswapped, few), "not every tile splits K");
  for (int k = 8; k <= 640; k += 8)
    for (int splits : {1, 2, 3}) {
      const bool even = (k + 63) / 64 % 2 == 0;
      EXPECT(
          l4k::can_run({kPair, splits}, bf16(9, 128, k)) == (splits == 1 || (splits == 2 && even)),
          "a pair splits K in equal halves: K " << k << ", splits " << splits);
    }
  // What tests/kernels/test_gemm_kernel.py counts on: one tile is split over all SMs.
  for (int sms : {1, 2, 3, 5, 8, 132}) {
    const l4k::GemmMachine machine = l4k::GemmMachine::assumed(sms);
    const int splits = l4k::choose_gemm(bf16(13, 128, 1920), {kSwap, 0}, machine).splits;
    EXPECT(splits == (sms < 8 ? sms : 8), sms << " SMs, " << splits << " splits");
  }
}

// An entry of tuned.h yields to a later generation only if that is modelled over 10 % better.
void check_generations() {
  const l4k::GemmProblem p = bf16(1024, 5120, 5120);
  const l4k::GemmChoice best = l4k::choose_config(p, {l4k::GemmChoice::kModelled, 0}, kMachine);
  l4k::TunedGemm entry{.n = p.n,
                       .k = p.k,
                       .num_experts = 1,
                       .fp8 = false,
                       .fast_accum = false,
                       .max_m = p.m,
                       .generation = 0,
                       .choice = {l4k::gemm_config("bf16_128x128"), 1}};
  EXPECT(l4k::kGemmConfigs[best.config].generation == 1, "");
  const auto chosen = [&] { return l4k::choose_tuned(p, entry, kMachine).config; };
  EXPECT(chosen() == best.config, "not measured, and modelled to be better");
  entry.generation = 1;
  EXPECT(chosen() == entry.choice.config, "measured, and not better");
  entry = {.n = p.n, .k = p.k, .num_experts = 1, .fp8 = false, .fast_accum = false, .max_m = p.m};
  EXPECT(chosen() == best.config, "the model's own choice of old yields as well");
  entry.generation = 0, entry.choice = {best.config, 1};
  EXPECT(chosen() == best.config, "no better than itself");
  entry.choice = {l4k::GemmChoice::kStream, 1};
  l4k::GemmProblem few = bf16(8, 5120, 5120);
  few.can_stream = true;
  EXPECT(l4k::choose_tuned(few, entry, kMachine).config == l4k::GemmChoice::kStream, "");
}

}  // namespace

int main() {
  std::set<int> used;
  check_names();
  check_products(used);
  check_vision(used);
  check_asked();
  check_splits();
  check_generations();
  for (const Product& product : {kProducts[0], kProducts[1], kProducts[2], kProducts[3]}) {
    check_waves(product, false, false);
    check_waves(product, true, false);
    if (product.swiglu) check_waves(product, true, true);
  }
  for (int i = 0; i < l4k::kNumGemmConfigs; ++i)
    EXPECT(used.count(i) == 1, l4k::kGemmConfigs[i].name << " is idle");
  return 0;
}
