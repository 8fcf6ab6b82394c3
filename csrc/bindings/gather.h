// The arguments of a product by expert that takes rows of A in the order of tokens.
#pragma once
#include "bindings/arguments.h"
#include "tile/few_rows.h"
#include "tile/route.h"

namespace l4k {

struct GatherArguments {
  const OptionalTensor& permutation;
  int64_t top_k;
};

// M of a product with so many rows of A.
inline int64_t rows_of_product(const Call& call, const GatherArguments& a, int64_t rows,
                               const OptionalTensor& expert_offsets) {
  call.require(a.top_k >= 1 && a.top_k <= kRouteMaxChoices, "expected top_k in 1 to ",
               kRouteMaxChoices, ", got ", a.top_k);
  if (!a.permutation) {
    call.require(a.top_k == 1, "expected no top_k without permutation, got ", a.top_k);
    return rows;
  }
  call.require(expert_offsets.has_value(), "expected expert_offsets with permutation, got none");
  const int64_t m = rows * a.top_k;
  call.require(m <= kFewRaggedRows, "expected at most ", kFewRaggedRows,
               " rows of permutation, got ", m, "; call moe_permute first");
  return m;
}

inline RowGather check_gather(const Call& call, const GatherArguments& a, int64_t m) {
  return {check_optional_list<int>(call, {"permutation", a.permutation}, {m}),
          static_cast<int>(a.top_k)};
}

}  // namespace l4k
