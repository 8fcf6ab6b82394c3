// The router's division of work: every column, expert and token in one CTA, few of them, and slices that
// depend on the width alone.
#include <vector>

#include "expect.h"
#include "kernels/moe_router/plan.h"
#include "tile/norm.h"
#include "tile/route.h"

namespace {

void every_product_belongs_to_one_cta() {
  for (int width : {8, 640, 648, 5120, 16384})
    for (int experts = 1; experts <= l4k::kRouteMaxExperts; ++experts)
      for (int tokens : {0, 1, 8, 9, 33, 64, 65, 392, 8192, l4k::kRouterTokens})
        for (int sms : {1, 3, 78, 132}) {
          const l4k::RouterPlan plan = l4k::plan_router(tokens, width, experts, sms);
          const auto covers = [](int parts, int size, int all) {
            return parts * size >= all && (parts - 1) * size < all;
          };
          EXPECT(covers(plan.slices, l4k::kRouterColumns, width), width);
          EXPECT(covers(plan.expert_tiles, l4k::kRouterTileExperts, experts), experts);
          EXPECT(covers(plan.groups, plan.group_tiles, plan.expert_tiles),
                 plan.groups << " groups of " << plan.group_tiles << ", " << experts << " experts");
          EXPECT(tokens == 0 ? plan.token_tiles == 1
                             : covers(plan.token_tiles, l4k::kRouterTileTokens, tokens),
                 tokens);
          EXPECT(plan.slice_ctas == 1 || plan.slice_ctas == plan.slices, plan.slice_ctas);
          EXPECT(plan.padded_experts() >= experts, experts);
        }
}

void ctas_fit_the_gpu_and_the_counter() {
  for (int width = 8; width <= l4k::kNormMaxWidth; width += 8)
    for (int experts : {1, 16, 128, l4k::kRouteMaxExperts})
      for (int tokens : {0, 1, 8, 16, 17, 64, 130, 392, 393, 8192, l4k::kRouterTokens}) {
        const l4k::RouterPlan plan = l4k::plan_router(tokens, width, experts, 132);
        EXPECT(plan.groups == 1 || plan.ctas() <= 132, width << ", " << experts << ", " << tokens);
        // tile/arrive.cuh counts to there, and so does a grid along z.
        EXPECT(plan.tile_ctas() < 1 << 16 && plan.token_tiles < 1 << 16, plan.token_tiles);
        EXPECT(plan.counter_words() >= 2 * (1 + plan.token_tiles), plan.counter_words());
        EXPECT(plan.counter_words() % 4 == 0, plan.counter_words());
      }
}

void a_cta_can_ask_for_all_its_weights_at_once() {
  // A thread for each row of the group's experts, and one for the norm's weights.
  for (int experts = 1; experts <= l4k::kRouteMaxExperts; ++experts) {
    const l4k::RouterPlan plan = l4k::plan_router(64, 16384, experts, 1);
    EXPECT(plan.group_tiles * l4k::kRouterTileExperts < l4k::kRouterThreads, experts);
  }
}

// Of Llama 4's widths, on 132 SMs. Rows of which the busiest SM takes in a slice's columns.
void a_cta_goes_through_all_slices_where_that_is_less() {
  const auto first = [](int experts) {
    int tokens = 1;
    while (l4k::plan_router(tokens, 5120, experts, 132).slice_ctas == 8) ++tokens;
    return tokens;
  };
  EXPECT(first(16) == 265, first(16));
  EXPECT(first(128) == 657, first(128));
  for (int tokens : {265, 1024, 8192, l4k::kRouterTokens})
    EXPECT(l4k::plan_router(tokens, 5120, 16, 132).slice_ctas == 1, tokens);
}

void slices_do_not_depend_on_the_batch() {
  for (int sms : {1, 78, 132})
    for (int tokens = 0; tokens <= l4k::kRouterTokens; tokens += 63) {
      const l4k::RouterPlan plan = l4k::plan_router(tokens, 5120, 128, sms);
      EXPECT(plan.slices == 8 && plan.padded_experts() == 128, tokens);
    }
}

}  // namespace

int main() {
  every_product_belongs_to_one_cta();
  ctas_fit_the_gpu_and_the_counter();
  a_cta_can_ask_for_all_its_weights_at_once();
  a_cta_goes_through_all_slices_where_that_is_less();
  slices_do_not_depend_on_the_batch();
}
