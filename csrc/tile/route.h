// Routing: what it writes, and how a CTA divides the work. Compiles under g++.
#pragma once
#include "tile/base.h"

namespace l4k {

constexpr int kRouteMaxExperts = 256;
constexpr int kRouteMaxTopK = 8;
constexpr int kRouteMaxChoices = kRouteMaxTopK + 1;  // of a token: the shared expert is one more
constexpr int kRouteLogits = 8;                      // per lane

// The results of routing, of the ops that route.
struct Routing {
  int64_t tokens;       // T; T * C < 2^31
  int num_experts;      // E <= kRouteMaxExperts
  int top_k;            // k <= kRouteMaxTopK
  bool shared_expert;   // expert E takes every token as well: C = k + 1 choices a token, else k
  int* topk_ids;        // [T, C] by descending logit, then E
  float* topk_weights;  // [T, C] sigmoid(logit), then 1
  float* row_scale;     // [T * C] topk_weights in permuted order
  int* expert_offsets;  // [E + 1], of the shared expert too: [E + 2]
  int* permutation;     // [T * C] permuted row -> t * C + j
  int* inverse;         // [T * C] t * C + j -> permuted row
  uint32_t* error;      // tile/report.cuh

  L4K_HD int choices() const { return top_k + shared_expert; }
};

// Lanes that share a token: the smallest power of two that holds all its logits.
L4K_HD constexpr int lanes_per_token(int num_experts) {
  int lanes = 1;
  while (lanes * kRouteLogits < num_experts) lanes *= 2;
  return lanes;
}

// Choices that one of the CTA's warps ranks: consecutive, in whole groups of 32.
L4K_HD constexpr int choices_per_warp(int choices, int warps) {
  return choices <= 32 ? 32 : round_up(ceil_div(choices, warps), 32);
}

// Place of a routed choice, token * top_k + j, among all choices: a shared expert is the last of each
// token's.
L4K_HD constexpr int flat_choice(int routed, int top_k, bool shared_expert) {
  return shared_expert ? routed + routed / top_k : routed;
}

}  // namespace l4k
