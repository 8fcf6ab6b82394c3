// What the router's mutants share: tokens and weights, and what routing must make of them.
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>

#include "../kernels/mutants.h"

// Three slices of columns, the last of 8; two tiles of experts and two of tokens, none full.
constexpr int kWidth = 1288, kExperts = 20, kTokens = 11, kTopK = 2, kChoices = kTopK + 1;
constexpr float kEps = 1e-5f;

// Values whose sums depend on the order of addition.
inline std::vector<uint16_t> numbers(int count, uint32_t salt) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (uint32_t i = 0; i < values.size(); ++i)
    values[i] = to_bf16(static_cast<float>(hash(i + 7919 * salt) % 20011) / 9973 - 1);
  return values;
}

// The device's memory, and what it is filled with before each run; the same for all mutants.
struct World {
  std::vector<uint16_t> norm_values = numbers(kWidth, 100),
                        router_values = numbers(kExperts * kWidth, 200);
  Buffer<uint16_t> asked{kTokens * kWidth}, x{kTokens * kWidth}, normed{kTokens * kWidth};
  Buffer<uint16_t> given_norm{norm_values}, given_router{router_values};
  Buffer<uint16_t> norm{kWidth}, router{kExperts * kWidth};
  Buffer<int> ids{kTokens * kChoices}, offsets{kExperts + 2};
  Buffer<int> permutation{kTokens * kChoices}, inverse{kTokens * kChoices};
  Buffer<float> weights{kTokens * kChoices}, row_scale{kTokens * kChoices};
  Buffer<uint32_t> error{1}, workspace{8 + 3 * kTokens * 32};
};

inline World& world() {
  static World it;
  return it;
}

// Normalised rows as the model rounds them.
inline std::vector<float> normalised(const std::vector<uint16_t>& x,
                                     const std::vector<uint16_t>& weight) {
  std::vector<float> rows;
  for (int token = 0; token < kTokens; ++token) {
    const uint16_t* row = &x[size_t(token) * kWidth];
    double squares = 0;
    for (int k = 0; k < kWidth; ++k) squares += double{from_bf16(row[k])} * from_bf16(row[k]);
    const auto factor = static_cast<float>(1 / std::sqrt(squares / kWidth + kEps));
    for (int k = 0; k < kWidth; ++k)
      rows.push_back(rounded(rounded(from_bf16(row[k]) * factor) * from_bf16(weight[k])));
  }
  return rows;
}

[[noreturn]] inline void wrong(const char* what, int where) {
  std::printf("WRONG %s at %d\n", what, where);
  std::exit(1);
}

// The original's results of one run.
inline void check_results(const std::vector<uint16_t>& x) {
  const World& w = world();
  const std::vector<float> rows = normalised(x, w.norm_values);
  const std::vector<uint16_t> normed = w.normed.download();
  for (size_t i = 0; i < rows.size(); ++i)  // a sum may round otherwise
    if (std::fabs(from_bf16(normed[i]) - rows[i]) > 0.01f * std::fabs(rows[i])) wrong("normed", i);
  const std::vector<int> ids = w.ids.download(), inverse = w.inverse.download();
  const std::vector<int> permutation = w.permutation.download(), offsets = w.offsets.download();
  const std::vector<float> weights = w.weights.download(), row_scale = w.row_scale.download();
  for (int token = 0; token < kTokens; ++token) {
    std::vector<double> logits(kExperts);
    for (int expert = 0; expert < kExperts; ++expert)
      for (int k = 0; k < kWidth; ++k)
        logits[expert] += double{rows[size_t(token) * kWidth + k]} *
                          from_bf16(w.router_values[size_t(expert) * kWidth + k]);
    std::vector<int> best(kExperts);
    std::iota(best.begin(), best.end(), 0);
    std::sort(best.begin(), best.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    for (int choice = 0; choice < kChoices; ++choice) {
      const int flat = token * kChoices + choice;
      const bool shared = choice == kTopK;
      if (ids[flat] != (shared ? kExperts : best[choice])) wrong("id", flat);
      const double weight = shared ? 1 : 1 / (1 + std::exp(-logits[best[choice]]));
      if (std::fabs(weights[flat] - weight) > 1e-3) wrong("weight", flat);
    }
  }
  std::vector<int> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ids[a] < ids[b]; });
  if (permutation != order) wrong("permutation", 0);
  for (int row = 0; row < kTokens * kChoices; ++row)
    if (inverse[order[row]] != row || row_scale[row] != weights[order[row]]) wrong("row", row);
  for (int expert = 0; expert < kExperts + 2; ++expert)
    if (offsets[expert] !=
        std::count_if(ids.begin(), ids.end(), [&](int id) { return id < expert; }))
      wrong("offset", expert);
}
