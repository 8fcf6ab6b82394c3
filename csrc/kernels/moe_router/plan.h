// How the router divides its work: columns of D into slices, experts into groups of tiles, tokens into
// tiles; a CTA for each three. Compiles under g++.
#pragma once
#include <algorithm>

#include "tile/base.h"

namespace l4k {

constexpr int kRouterTokens = 64;    // at most
constexpr int kRouterThreads = 320;  // each warp multiplies 64 columns of the slice
constexpr int kRouterWarps = kRouterThreads / 32;
constexpr int kRouterColumns = 64 * kRouterWarps;  // of a slice: Llama 4 has eight
constexpr int kRouterTileExperts = 16;             // rows of a product m16n8k16
constexpr int kRouterTileTokens = 8;               // and its columns

struct RouterPlan {
  int slices;        // of D
  int expert_tiles;  // of all experts
  int group_tiles;   // consecutive ones, of one CTA
  int groups;
  int token_tiles;  // at least one: no tokens have offsets, too

  L4K_HD constexpr int ctas() const { return slices * groups * token_tiles; }
  // Logits of a slice and a token in the workspace.
  L4K_HD constexpr int padded_experts() const { return expert_tiles * kRouterTileExperts; }
};

// At most one CTA per SM if slices and token tiles allow it, as many as there are expert tiles. The
// groups alone depend on the GPU: they decide who multiplies, and nothing of the results.
constexpr RouterPlan plan_router(int tokens, int width, int num_experts, int sm_count) {
  RouterPlan plan{};
  plan.slices = ceil_div(width, kRouterColumns);
  plan.expert_tiles = ceil_div(num_experts, kRouterTileExperts);
  plan.token_tiles = std::max(ceil_div(tokens, kRouterTileTokens), 1);
  const int most = std::max(sm_count / (plan.slices * plan.token_tiles), 1);
  plan.group_tiles = ceil_div(plan.expert_tiles, std::min(most, plan.expert_tiles));
  plan.groups = ceil_div(plan.expert_tiles, plan.group_tiles);
  return plan;
}

}  // namespace l4k
