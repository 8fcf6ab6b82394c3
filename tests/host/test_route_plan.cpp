// Routing's integers: tiles cover the tokens, warps cover a tile's choices, keys keep the order of
// floats, and a model of the counting sort equals a stable sort.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "expect.h"
#include "kernels/moe_route/plan.h"
#include "tile/norm.h"
#include "tile/ordered.h"
#include "tile/route.h"
#include "tile/row_tiles.h"

namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

void tiles_cover_the_tokens_once() {
  std::vector<int64_t> sizes{65, 127, 128, 1000, 4096, 16384, 131072, 262144, 1000000};
  for (int64_t t = 0; t < 700; ++t) sizes.push_back(t);
  for (int64_t tokens : sizes)
    for (int sms : {1, 2, 78, 114, 132}) {
      const l4k::RoutePlan plan = l4k::plan_route(tokens, sms);
      EXPECT(plan.tiles >= 1 && plan.tiles <= sms, tokens << " tokens, " << plan.tiles << " tiles");
      EXPECT(int64_t{plan.tiles} * plan.tile_tokens >= tokens, tokens);
      EXPECT(int64_t{plan.tiles - 1} * plan.tile_tokens < std::max<int64_t>(tokens, 1), tokens);
      if (tokens <= l4k::kRouteOneLaunchTokens) EXPECT(plan.tiles == 1, tokens);
    }
}

void warps_cover_the_choices_once() {
  for (int choices = 0; choices < 70000; choices += choices < 3000 ? 1 : 997) {
    for (int warps : {8, 32}) {
      const int stride = l4k::choices_per_warp(choices, warps);
      EXPECT(stride % 32 == 0 && stride >= 32, stride);
      EXPECT(stride * warps >= choices, choices);
      EXPECT(l4k::ceil_div(choices, stride) <= warps, choices);
    }
  }
}

void lanes_hold_all_experts() {
  for (int experts = 1; experts <= l4k::kRouteMaxExperts; ++experts) {
    const int lanes = l4k::lanes_per_token(experts);
    EXPECT(lanes <= 32 && (lanes & (lanes - 1)) == 0, lanes);
    EXPECT(lanes * l4k::kRouteLogits >= experts, experts);
    EXPECT(lanes == 1 || lanes / 2 * l4k::kRouteLogits < experts, experts);
  }
}

void keys_keep_the_order_of_floats() {
  std::mt19937 random(1);
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> values{-infinity, infinity, 0.f, 1e-45f, -1e-45f, 1.f, -1.f, 3e38f, -3e38f};
  while (values.size() < 2000) {
    const uint32_t bits = random();
    float value;
    std::memcpy(&value, &bits, sizeof value);
    if (!std::isnan(value)) values.push_back(value + 0.f);
  }
  for (float value : values) {
    EXPECT(l4k::ordered_bits(l4k::ordered_key(bits_of(value))) == bits_of(value), value);
    EXPECT(l4k::ordered_key(bits_of(value)) > 0, value);
  }
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const float a = values[i], b = values[i + 1];
    const bool below = l4k::ordered_key(bits_of(a)) < l4k::ordered_key(bits_of(b));
    EXPECT((a < b) == below, a << " and " << b);
  }
}

// Counts per tile, starts per tile, counts per warp, rows per warp: as the kernels do it.
std::vector<int> counting_sort(const std::vector<int>& ids, int experts, int top_k, int sms) {
  const int64_t tokens = static_cast<int64_t>(ids.size()) / top_k;
  const l4k::RoutePlan plan = l4k::plan_route(tokens, sms);
  auto bound = [&](int tile) {
    return static_cast<int>(std::min<int64_t>(int64_t{tile} * plan.tile_tokens, tokens)) * top_k;
  };
  std::vector<std::vector<int>> counts(plan.tiles, std::vector<int>(experts));
  for (int tile = 0; tile < plan.tiles; ++tile)
    for (int i = bound(tile); i < bound(tile + 1); ++i) ++counts[tile][ids[i]];
  std::vector<int> inverse(ids.size(), -1);
  for (int tile = 0; tile < plan.tiles; ++tile) {
    std::vector<int> starts(experts);
    int offset = 0;
    for (int e = 0; e < experts; ++e) {
      int all = 0, before = 0;
      for (int t = 0; t < plan.tiles; ++t) {
        all += counts[t][e];
        if (t < tile) before += counts[t][e];
      }
      starts[e] = offset + before;
      offset += all;
    }
    const int begin = bound(tile), end = bound(tile + 1);
    const int stride = l4k::choices_per_warp(end - begin, l4k::kRouteThreads / 32);
    for (int from = begin; from < end; from += stride) {
      std::vector<int> rows = starts;
      for (int i = begin; i < from; ++i) ++rows[ids[i]];
      for (int i = from; i < std::min(from + stride, end); ++i) inverse[i] = rows[ids[i]]++;
    }
  }
  return inverse;
}

void the_counting_sort_is_stable() {
  std::mt19937 random(2);
  for (int experts : {1, 2, 16, 128, 256})
    for (int top_k : {1, 2, 8})
      for (int tokens : {0, 1, 7, 64, 65, 300, 4096}) {
        if (top_k > experts) continue;
        std::vector<int> ids(static_cast<size_t>(tokens) * top_k);
        for (int& id : ids) id = static_cast<int>(random() % experts);
        if (tokens == 300) std::fill(ids.begin(), ids.end(), experts - 1);  // all to one
        std::vector<int> order(ids.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ids[a] < ids[b]; });
        const std::vector<int> inverse = counting_sort(ids, experts, top_k, 132);
        for (size_t row = 0; row < order.size(); ++row)
          EXPECT(inverse[order[row]] == static_cast<int>(row), "row " << row << " of " << tokens);
      }
}

// With a shared expert as every token's last choice: routed ones keep their order and leave its place.
void all_choices_have_a_place() {
  for (int top_k = 1; top_k <= l4k::kRouteMaxTopK; ++top_k)
    for (int routed = 0; routed < 100 * top_k; ++routed) {
      const int token = routed / top_k, choice = routed % top_k;
      EXPECT(l4k::flat_choice(routed, top_k, false) == routed, routed);
      EXPECT(l4k::flat_choice(routed, top_k, true) == token * (top_k + 1) + choice, routed);
    }
}

void row_tiles_cover_a_row() {
  for (int64_t vectors = 0; vectors < 20000; vectors += vectors < 600 ? 1 : 37)
    for (int unroll : {2, 4}) {
      const l4k::RowTiles tiles = l4k::tile_rows(vectors, unroll, 256);
      EXPECT(tiles.threads % 32 == 0 && tiles.threads >= 32 && tiles.threads <= 256, vectors);
      EXPECT(int64_t{tiles.row_tiles} * tiles.threads * unroll >= vectors, vectors);
      EXPECT(vectors == 0 || int64_t{tiles.row_tiles - 1} * tiles.threads * unroll < vectors,
             vectors);
    }
}

void a_cta_holds_a_row_that_it_norms() {
  for (int vectors = 1; vectors <= l4k::kNormMaxWidth / 8; ++vectors) {
    const int threads = l4k::norm_threads(vectors);
    EXPECT(threads % 32 == 0 && threads <= 1024, vectors);
    EXPECT(threads * l4k::kNormVectors >= vectors, vectors);
    EXPECT((threads - 32) * l4k::kNormVectors < vectors, vectors);
  }
}

}  // namespace

int main() {
  tiles_cover_the_tokens_once();
  warps_cover_the_choices_once();
  lanes_hold_all_experts();
  keys_keep_the_order_of_floats();
  the_counting_sort_is_stable();
  all_choices_have_a_place();
  row_tiles_cover_a_row();
  a_cta_holds_a_row_that_it_norms();
}
