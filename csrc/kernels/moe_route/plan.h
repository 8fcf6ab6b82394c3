// How routing divides its work: tokens into tiles (one CTA each), a tile's choices into warps.
// Compiles under g++.
#pragma once
#include "tile/base.h"

namespace l4k {

constexpr int kRouteMaxExperts = 256;
constexpr int kRouteMaxTopK = 8;
constexpr int kRouteMaxChoices = kRouteMaxTopK + 1;  // of a token: the shared expert is one more
constexpr int kRouteThreads = 1024;
constexpr int kRouteWarps = kRouteThreads / 32;
constexpr int kRouteOneLaunchTokens = 64;  // at most: one CTA does everything
constexpr int kRouteLogits = 8;            // per lane

struct RoutePlan {
  int tiles;
  int tile_tokens;
};

// Two launches of at most one CTA per SM. A tile of fewer than 32 tokens would leave most lanes
// idle and give the second launch more counts to add up.
L4K_HD constexpr RoutePlan plan_route(int64_t tokens, int sm_count) {
  if (tokens <= kRouteOneLaunchTokens) return {1, kRouteOneLaunchTokens};
  int64_t tile_tokens = ceil_div<int64_t>(tokens, sm_count);
  if (tile_tokens < 32) tile_tokens = 32;
  return {static_cast<int>(ceil_div(tokens, tile_tokens)), static_cast<int>(tile_tokens)};
}

// Lanes that share a token: the smallest power of two that holds all its logits.
L4K_HD constexpr int lanes_per_token(int num_experts) {
  int lanes = 1;
  while (lanes * kRouteLogits < num_experts) lanes *= 2;
  return lanes;
}

// Choices of a tile that one warp ranks: consecutive, in whole groups of 32.
L4K_HD constexpr int choices_per_warp(int choices) {
  return choices <= 32 ? 32 : round_up(ceil_div(choices, kRouteWarps), 32);
}

// Place of a routed choice, token * top_k + j, among all choices: a shared expert is the last of each
// token's.
L4K_HD constexpr int flat_choice(int routed, int top_k, bool shared_expert) {
  return shared_expert ? routed + routed / top_k : routed;
}

}  // namespace l4k
