// How the router divides its work: columns of D into slices, experts into groups of tiles, tokens into
// tiles; a CTA for each three, or one for all slices of a tile. Compiles under g++.
#pragma once
#include <algorithm>

#include "tile/base.h"

namespace l4k {

constexpr int kRouterTokens = 65536;  // at most
constexpr int kRouterThreads = 320;   // each warp multiplies 64 columns of the slice
constexpr int kRouterWarps = kRouterThreads / 32;
constexpr int kRouterColumns = 64 * kRouterWarps;  // of a slice: Llama 4 has eight
constexpr int kRouterTileExperts = 16;             // rows of a product m16n8k16
constexpr int kRouterTileTokens = 8;               // and its columns

struct RouterPlan {
  int slices;        // of D
  int slice_ctas;    // that share them: as many, or one
  int expert_tiles;  // of all experts
  int group_tiles;   // consecutive ones, of one CTA
  int groups;
  int token_tiles;  // at least one: no tokens have offsets, too

  L4K_HD constexpr int tile_ctas() const { return slice_ctas * groups; }
  L4K_HD constexpr int ctas() const { return tile_ctas() * token_tiles; }
  // Logits of a slice and a token in the workspace.
  L4K_HD constexpr int padded_experts() const { return expert_tiles * kRouterTileExperts; }
  // 4-byte words before them: a counter of each token tile's CTAs, and one of the tiles. Logits are read
  // in 16-byte vectors.
  L4K_HD constexpr int counter_words() const { return round_up(2 * (1 + token_tiles), 4); }
  // Whether the busiest SM takes in less if a CTA goes through all slices of its tokens. Every CTA takes
  // in whole rows for their sums of squares, which one does once; but a few tiles of tokens keep few
  // SMs busy. In rows of a slice's columns: of tokens, and of as many experts.
  constexpr bool together(int sm_count) const {
    const int rows = kRouterTileTokens, own = rows + padded_experts();
    return ceil_div(token_tiles, sm_count) * slices * (rows + own) <
           ceil_div(slices * token_tiles, sm_count) * (slices * rows + own);
  }
};

// At most one CTA per SM if slices and token tiles allow it, as many as there are expert tiles. Who
// multiplies depends on the GPU and on the batch, and nothing of the results on that.
constexpr RouterPlan plan_router(int tokens, int width, int num_experts, int sm_count) {
  RouterPlan plan{};
  plan.slices = ceil_div(width, kRouterColumns);
  plan.expert_tiles = ceil_div(num_experts, kRouterTileExperts);
  plan.token_tiles = std::max(ceil_div(tokens, kRouterTileTokens), 1);
  plan.slice_ctas = plan.together(sm_count) ? 1 : plan.slices;
  const int most = std::max(sm_count / (plan.slice_ctas * plan.token_tiles), 1);
  plan.group_tiles = ceil_div(plan.expert_tiles, std::min(most, plan.expert_tiles));
  plan.groups = ceil_div(plan.expert_tiles, plan.group_tiles);
  return plan;
}

}  // namespace l4k
