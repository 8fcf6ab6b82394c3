// What the mutants of moe_combine share: tokens, what they must become, the device's memory.
#pragma once
#include <cmath>

#include "../kernels/mutants.h"

constexpr int kWidth = 1032, kTokens = 13, kTopK = 2, kRows = kTopK * kTokens;
constexpr int kBadToken = 5;  // one of its indices leads outside
constexpr float kEps = 1e-3f;

inline std::vector<uint16_t> numbers(int count, uint32_t salt) {
  std::vector<uint16_t> values(count);
  for (int i = 0; i < count; ++i)
    values[i] = to_bf16(static_cast<float>(hash(i + salt) % 2003) / 997 - 1);
  return values;
}

inline std::vector<int> order() {
  std::vector<int> rows(kRows);
  for (int i = 0; i < kRows; ++i) rows[i] = i * 7 % kRows;
  rows[kTopK * kBadToken + 1] = kRows;
  return rows;
}

struct World {
  std::vector<uint16_t> rows = numbers(kRows * kWidth, 1), stream = numbers(kTokens * kWidth, 2),
                        factors = numbers(kWidth, 3);
  std::vector<int> places = order();
  Buffer<uint16_t> asked{rows}, y{rows}, residual{stream}, weight{factors};
  Buffer<int> given{places}, inverse{places};
  Buffer<uint16_t> x{stream}, normed{stream}, last{stream};
  Buffer<uint8_t> q{kTokens * kWidth};
  Buffer<float> scale{kTokens};
  Buffer<uint32_t> error{1};
};

inline World& world() {
  static World it;
  return it;
}

// The first sum and its norm, after their roundings.
inline void check_results(const std::vector<uint16_t>& x, const std::vector<uint16_t>& normed) {
  const World& w = world();
  for (int token = 0; token < kTokens; ++token) {
    std::vector<double> sum(kWidth);
    double squares = 0;
    for (int i = 0; i < kWidth; ++i) {
      const auto row = [&](int j) {
        return from_bf16(w.rows[w.places[kTopK * token + j] * kWidth + i]);
      };
      if (token != kBadToken) sum[i] = row(0) + row(1) + from_bf16(w.stream[token * kWidth + i]);
      squares += sum[i] * sum[i];
    }
    const double factor = 1 / std::sqrt(squares / kWidth + kEps);
    for (int i = 0; i < kWidth; ++i) {
      const double wanted = sum[i] * factor * from_bf16(w.factors[i]);
      const float got[] = {from_bf16(x[token * kWidth + i]), from_bf16(normed[token * kWidth + i])};
      if (std::fabs(got[0] - sum[i]) <= 0.004 * std::fabs(sum[i]) &&
          std::fabs(got[1] - wanted) <= 0.012 * std::fabs(wanted))
        continue;
      std::printf("WRONG token %d: %g for %g, %g for %g\n", token, got[0], sum[i], got[1], wanted);
      std::exit(1);
    }
  }
}
