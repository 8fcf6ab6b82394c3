// w4_gemm's integers: pieces cover every K block of every tile once, those who share a tile know each
// other, nobody's sums lie on another's; and every Llama 4 product gets a configuration. Prints the
// choices.
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "expect.h"
#include "kernels/w4_gemm/choose.h"

namespace {

using l4k::W4GemmConfig;
using l4k::W4GemmProblem;
using l4k::W4Holders;
using l4k::W4Piece;
using l4k::W4Schedule;
using l4k::W4Turn;

struct Part {
  int cta;
  W4Piece piece;
};

// Who holds what of each tile, in the order of K.
std::vector<std::vector<Part>> parts_of(const W4Schedule& s) {
  std::vector<std::vector<Part>> parts(s.tiles);
  for (int cta = 0; cta < s.ctas; ++cta) {
    const W4Turn turn = W4Turn::of(s, cta);
    int last = -1;
    for (W4Piece piece = turn.first(); !piece.empty(); piece = turn.next(piece)) {
      EXPECT(piece.tile > last && piece.tile < s.tiles, "tile " << piece.tile);
      EXPECT(0 <= piece.first && piece.first < piece.end && piece.end <= s.k_blocks, "blocks");
      parts[piece.tile].push_back({cta, piece});
      last = piece.tile;
    }
  }
  return parts;
}

void check_split(const W4Schedule& s, int tile, const std::vector<Part>& parts,
                 std::set<int>& slots, std::set<int>& counters) {
  const W4Holders holders = s.holders(tile);
  EXPECT(holders.first == parts.front().cta && holders.last == parts.back().cta, "holders");
  EXPECT(holders.count() == static_cast<int>(parts.size()), "each holder has one piece");
  for (const Part& part : parts) {
    const int slot = holders.slot(part.cta);
    EXPECT(slot / 2 == part.cta && slots.insert(slot).second, "slot " << slot << " is taken");
  }
  const int counter = s.counter(tile);
  EXPECT(0 <= counter && counter < W4Schedule::most_counters(s.ctas), "counter " << counter);
  EXPECT(counters.insert(counter).second, "counter " << counter << " is another tile's");
}

bool check_schedule(int tiles, int k_blocks, int ctas, bool may_split) {
  const W4Schedule s = W4Schedule::of(tiles, k_blocks, ctas, may_split);
  const auto parts = parts_of(s);
  std::set<int> slots, counters;
  bool any = false;
  for (int tile = 0; tile < tiles; ++tile) {
    int block = 0;
    for (const Part& part : parts[tile]) {
      EXPECT(part.piece.first == block, "tile " << tile << " at block " << block);
      block = part.piece.end;
    }
    EXPECT(block == k_blocks, "tile " << tile << " of " << tiles << ", " << ctas << " CTAs");
    if (!s.split(parts[tile].front().piece)) continue;
    EXPECT(may_split && tile >= s.whole, "only the last tiles are split");
    check_split(s, tile, parts[tile], slots, counters);
    any = true;
  }
  if (s.rest.units > 0) {
    for (int cta = 0; cta < s.rest.ctas; ++cta) {
      const int share = s.rest.first(cta + 1) - s.rest.first(cta);
      EXPECT(share >= W4Schedule::kLeastShare, "a share of " << share);
      EXPECT(share - s.rest.units / s.rest.ctas <= 1, "shares are even");
    }
  }
  return any;
}

struct Product {
  const char* name;
  int n, k, num_experts;
};
constexpr Product kProducts[] = {
    {"qkv", 7168, 5120, 1},
    {"o", 5120, 5120, 1},
    {"gate_up", 16384, 5120, 1},
    {"down", 5120, 8192, 1},
    {"gate_up, 17 experts", 16384, 5120, 17},
    {"down, 17 experts", 5120, 8192, 17},
    {"gate_up, 129 experts", 16384, 5120, 129},
    {"o of 8 GPUs", 5120, 640, 1},
    {"gate_up of 8 GPUs", 2048, 5120, 1},
};

// The greatest part that a CTA has of a product's K blocks, over the mean.
double unevenness(const W4GemmConfig& c, const W4GemmProblem& p) {
  const int tiles = l4k::ceil_div(p.m, c.block_m) * l4k::ceil_div(p.n, c.block_n);
  const W4Schedule s = W4Schedule::of(tiles, p.k / 128, 132, c.may_split(p.m));
  int most = 0;
  for (int cta = 0; cta < s.ctas; ++cta) {
    const W4Turn turn = W4Turn::of(s, cta);
    int blocks = 0;
    for (W4Piece piece = turn.first(); !piece.empty(); piece = turn.next(piece))
      blocks += piece.end - piece.first;
    most = most > blocks ? most : blocks;
  }
  return most / (1.0 * tiles * (p.k / 128) / 132);
}

// A name says what the fields say.
std::string name_of(const W4GemmConfig& c) {
  return "w4_" + std::to_string(c.block_m) + "x" + std::to_string(c.block_n);
}

}  // namespace

int main() {
  int split = 0;
  for (int ctas : {1, 2, 3, 4, 7, 8, 132})
    for (int tiles = 0; tiles <= 3 * ctas + 9 && tiles <= 420; ++tiles)
      for (int k_blocks : {1, 2, 3, 4, 5, 11, 40, 64}) {
        EXPECT(!check_schedule(tiles, k_blocks, ctas, false), "nothing is split that must not be");
        split += check_schedule(tiles, k_blocks, ctas, true);
      }
  EXPECT(split > 1000, split << " schedules with split tiles");
  // Large offsets stay within an int.
  const l4k::Shares far{2000000000, 132};
  for (int cta = 0; cta < 132; ++cta) {
    EXPECT(far.first(cta) == int64_t{far.units} * cta / far.ctas, "share " << cta);
    EXPECT(far.owner(far.first(cta)) == cta, "owner of " << far.first(cta));
  }

  std::set<std::string> names;
  for (const W4GemmConfig& c : l4k::kW4GemmConfigs) {
    EXPECT(c.name == name_of(c), c.name << " is " << name_of(c));
    EXPECT(names.insert(c.name).second, c.name << " twice");
  }
  std::set<int> used;
  for (const Product& product : kProducts) {
    std::printf("%-21s", product.name);
    for (int m : {1, 17, 32, 33, 64, 65, 128, 256, 512, 1024, 2048, 8192}) {
      const W4GemmProblem p{m, product.n, product.k, product.num_experts};
      const int choice = l4k::choose_w4_gemm(p, -1, 132);
      const W4GemmConfig& c = l4k::kW4GemmConfigs[choice];
      used.insert(choice);
      std::printf(" %d:%s/%.2f", m, c.name + 3, unevenness(c, p));
      if (m >= 4096 && product.num_experts == 1 && product.n >= 5120)
        EXPECT(c.block_m == 128, product.name << ": many tokens share conversions");
      if (m <= 32 && product.num_experts == 1)
        EXPECT(c.block_m == 32, product.name << ": few tokens need no more");
      const int ctas = l4k::w4_gemm_ctas(c, p, 132);
      EXPECT(ctas >= 1 && ctas <= 132, ctas << " CTAs");
    }
    std::printf("\n");
  }
  for (int i = 0; i < l4k::kNumW4GemmConfigs; ++i)
    EXPECT(used.count(i) == 1, l4k::kW4GemmConfigs[i].name << " is idle");
  EXPECT(l4k::choose_w4_gemm({1, 16, 128, 1}, 1, 132) == 1, "what is asked for");
  static_assert(l4k::w4_gemm_config("w4_32x128") == 3, "what bench/results counts by");
  return 0;
}
