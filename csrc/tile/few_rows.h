// Products of few rows of A: for how many their weights stream, and rows that such a product takes
// from where they lie. Compiles under g++.
#pragma once

namespace l4k {

// One tile of tokens when dense; by expert sixteen tokens and, for each, the shared expert's row.
constexpr int kFewRows = 16, kFewRaggedRows = 32;

// Row i of a product by expert is row permutation[i] / top_k of A, which is in the order of tokens.
struct RowGather {
  const int* permutation;  // [M], M at most kFewRaggedRows; null: A has M rows, in expert order
  int top_k;
};

}  // namespace l4k
