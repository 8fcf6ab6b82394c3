// How the launches of moe_route divide the tokens into tiles, one CTA each.
// Compiles under g++.
#pragma once
#include "tile/base.h"

namespace l4k {

constexpr int kRouteThreads = 1024;
constexpr int kRouteOneLaunchTokens = 64;  // at most: one CTA does everything

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

}  // namespace l4k
