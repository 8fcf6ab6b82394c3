// What the project's integer headers say of a problem, as one line of JSON for each line read:
//
//   gemm m n k experts fp8 fast swiglu config sms
//                                             the configuration chosen, its splits, its schedule,
//                                             streaming aside
//   prefill tokens keys heads kv_heads chunk sms cut
//                                             the busiest CTA's pieces and tiles of keys, the pieces
//                                             of all; cut 0: no item is cut
//   int4 groups zeros                         a tile's bytes, and its codes' (row by row), scales'
//                                             and zero points' (group by group) first bits
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/flash_prefill/schedule.h"
#include "kernels/gemm/choose.h"
#include "prefill_cut.h"
#include "tile/int4.h"
#include "tile/schedule.h"

namespace {

using namespace l4k;

// Tiles of the busiest cluster if rows are spread evenly over experts.
int busiest_cluster(const GemmConfig& c, const GemmProblem& p, int splits, int clusters) {
  std::vector<int> row_ends(p.num_experts), tile_ends(p.num_experts);
  const int width = c.block_n * c.cluster_n;
  const bool pair = c.cluster_m > 1 && splits == 1;
  const RaggedSchedule schedule{.num_experts = p.num_experts,
                                .block_m = pair ? c.block_m * c.cluster_m : c.block_m,
                                .block_n = width,
                                .column_tiles = ceil_div(p.n, width),
                                .raster = 1,
                                .tail_tiles = pair,
                                .row_ends = row_ends.data(),
                                .tile_ends = tile_ends.data()};
  int begin = 0, tiles = 0;
  for (int e = 0; e < p.num_experts; ++e) {
    const int end = static_cast<int>(int64_t{p.m} * (e + 1) / p.num_experts);
    tiles += schedule.tiles(end - begin);
    row_ends[e] = begin = end;
    tile_ends[e] = tiles;
  }
  return ceil_div(schedule.num_tiles(), std::min(clusters, std::max(1, schedule.num_tiles())));
}

bool answer_gemm() {
  GemmProblem p{};
  int fp8, fast, swiglu, config, sms;
  if (std::scanf("%d %d %d %d %d %d %d %d %d", &p.m, &p.n, &p.k, &p.num_experts, &fp8, &fast,
                 &swiglu, &config, &sms) != 9)
    return false;
  p.fp8 = fp8 != 0;
  p.swiglu = swiglu != 0;
  p.fast_accum = fast != 0;
  const GemmMachine machine = GemmMachine::assumed(sms);
  const GemmChoice choice = choose_gemm(p, GemmChoice::of(config), machine);
  if (choice.config < 0) return std::printf("{\"config\": null}\n") > 0;
  const GemmConfig& c = kGemmConfigs[choice.config];
  const int ctas = ctas_per_tile(c, p, choice.splits), clusters = machine.slots(c, ctas);
  return std::printf(
             "{\"config\": \"%s\", \"splits\": %d, \"staging\": %d, \"clusters\": %d, \"ctas\": "
             "%d, "
             "\"tiles\": %d}\n",
             c.name, choice.splits, c.swap ? c.sums_bytes() : 2 * c.result_bytes(), clusters, ctas,
             busiest_cluster(c, p, choice.splits, clusters)) > 0;
}

bool answer_prefill() {
  int tokens, keys, heads, kv_heads, chunk, sms, cut;
  if (std::scanf("%d %d %d %d %d %d %d", &tokens, &keys, &heads, &kv_heads, &chunk, &sms, &cut) !=
      7)
    return false;
  std::vector<PrefillTile> tiles;
  std::vector<int> lengths;
  for (int t = 0; t < ceil_div(tokens, prefill_tokens(heads / kv_heads)); ++t) {
    tiles.push_back(prefill_tile(t, tokens, keys, heads / kv_heads, chunk, keys));
    lengths.push_back(tiles.back().end_tile - tiles.back().first_tile);
  }
  const int64_t all = static_cast<int64_t>(tiles.size());
  const int grid = prefill_ctas(all, kv_heads, keys, sms);
  const bool cuts = cut != 0 && may_cut(all, kv_heads, grid);
  const int most = cuts ? prefill_cut(lengths, kv_heads, grid).max_tiles : keys;
  std::vector<std::pair<int, int>> items;  // tiles of keys, of them masked
  for (const PrefillTile& tile : tiles) {
    const int touched = tile.end_tile - tile.first_tile;
    const PrefillPieces pieces = pieces_of(touched, count_pieces(touched, most));
    for (int k = 0; k < pieces.count; ++k) {
      const int first = tile.first_tile + pieces.begin(k);
      const int end = tile.first_tile + pieces.begin(k + 1);
      const int whole = std::min(end, tile.end_whole) - std::max(first, tile.first_whole);
      for (int head = 0; head < kv_heads; ++head)
        items.push_back({end - first, end - first - std::max(0, whole)});
    }
  }
  std::sort(items.rbegin(), items.rend());
  const int count = static_cast<int>(items.size()), ctas = std::min(count, sms);
  int best[3] = {};
  for (int cta = 0; cta < ctas; ++cta) {
    int sum[3] = {};
    for (int round = 0; round * ctas < count; ++round) {
      const int index = snake(round, cta, ctas);
      if (index >= count) continue;
      sum[0] += 1;
      sum[1] += items[index].first;
      sum[2] += items[index].second;
    }
    if (sum[1] > best[1]) std::copy(sum, sum + 3, best);
  }
  return std::printf(
             "{\"items\": %d, \"key_tiles\": %d, \"masked\": %d, \"keys\": %d, "
             "\"rows\": %d, \"ctas\": %d, \"pieces\": %d}\n",
             best[0], best[1], best[2], kPrefillKeys, kPrefillRows, ctas,
             count > all * kv_heads ? count : 0) > 0;
}

template <typename Value>
void print_list(const char* name, int count, Value value) {
  std::printf("\"%s\": [", name);
  for (int i = 0; i < count; ++i) std::printf("%s%d", i == 0 ? "" : ", ", value(i));
  std::printf("], ");
}

bool answer_int4() {
  int groups, zeros;
  if (std::scanf("%d %d", &groups, &zeros) != 2) return false;
  const Int4Tile tile{groups, zeros != 0};
  std::printf("{");
  print_list("codes", kInt4TileRows * kInt4TileK, [](int i) {
    const Int4Place place = int4_place(i / kInt4TileK, i % kInt4TileK);
    return 32 * place.word + 4 * place.field;
  });
  const int factors = kInt4TileRows * groups;
  print_list("scales", factors, [&](int i) {
    return 8 * tile.scales(i / kInt4TileRows) + 16 * int4_row_slot(i % kInt4TileRows);
  });
  print_list("zeros", tile.zeros ? factors : 0, [&](int i) {
    return 8 * (tile.zero_points(i / kInt4TileRows) + int4_row_slot(i % kInt4TileRows));
  });
  return std::printf("\"bytes\": %d}\n", tile.bytes()) > 0;
}

}  // namespace

int main() {
  char kind[16];
  while (std::scanf("%15s", kind) == 1) {
    const bool answered = std::strcmp(kind, "gemm") == 0   ? answer_gemm()
                          : std::strcmp(kind, "int4") == 0 ? answer_int4()
                                                           : answer_prefill();
    if (!answered) return 1;
  }
  return 0;
}
