// What the mutants of flash_prefill share: two sequences over an e4m3 cache, what they must become,
// the device's memory. Of the first batch every CTA has several items, and an item several ranges of
// keys; the second has so few queries that the first sequence's keys are cut into pieces.
#pragma once
#include <cmath>

#include "../kernels/mutants.h"

constexpr int kGroup = 5, kKvHeads = 2, kHeads = kGroup * kKvHeads, kDim = 128;
constexpr int kPage = 32, kBatch = 2, kColumns = 12;
struct Lengths {
  int queries[kBatch], keys[kBatch];
};
constexpr Lengths kMany = {{60, 3}, {333, 3}}, kFew = {{4, 2}, {333, 70}};
constexpr int kRows = kMany.queries[0] + kMany.queries[1] + 2;  // two that no sequence owns
constexpr float kScale = 0.125f;

inline float e4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 0x80 ? -value : value;
}

// Magnitudes of 1/16 to 1.9, either sign.
inline std::vector<uint8_t> codes(int count, uint32_t salt) {
  std::vector<uint8_t> values(count);
  for (int i = 0; i < count; ++i) {
    const uint32_t h = hash(i + salt);
    values[i] = static_cast<uint8_t>((h & 0x80) | (0x18 + h % 40));
  }
  return values;
}

inline std::vector<uint16_t> queries() {
  std::vector<uint16_t> values(kRows * kHeads * kDim);
  for (int i = 0; i < static_cast<int>(values.size()); ++i)
    values[i] = to_bf16(static_cast<float>(hash(i + 7) % 255) / 64 - 2);
  return values;
}

struct World {
  std::vector<uint16_t> q_host = queries();
  std::vector<uint8_t> k_host = codes(kBatch * kColumns * kPage * kKvHeads * kDim, 1),
                       v_host = codes(kBatch * kColumns * kPage * kKvHeads * kDim, 2);
  std::vector<int> table_host = [] {
    std::vector<int> pages(kBatch * kColumns);
    for (int i = 0; i < kBatch * kColumns; ++i) pages[i] = i * 7 % (kBatch * kColumns);
    return pages;
  }();
  Buffer<uint16_t> q{q_host}, out{kRows * kHeads * kDim};
  Buffer<uint8_t> k{k_host}, v{v_host};
  Buffer<int> table{table_host};
  Buffer<float> lse{kHeads * kRows}, k_scale{std::vector<float>{0.5f, 0.25f}},
      v_scale{std::vector<float>{2.f, 1.f}};
  Buffer<uint32_t> error{1};
};

inline World& world() {
  static World it;
  return it;
}

// A row of the result, in double.
inline std::vector<double> expected(const Lengths& n, int sequence, int token, int head) {
  const World& w = world();
  const int kv_head = head / kGroup, row = sequence * n.queries[0] + token;
  const int position = n.keys[sequence] - n.queries[sequence] + token;
  const auto at = [&](const std::vector<uint8_t>& cache, int key, int d) {
    const int page = w.table_host[sequence * kColumns + key / kPage];
    return e4m3(cache[((page * kPage + key % kPage) * kKvHeads + kv_head) * kDim + d]);
  };
  std::vector<double> sums(kDim);
  double total = 0;
  for (int key = 0; key <= position; ++key) {
    double score = 0;
    for (int d = 0; d < kDim; ++d)
      score += from_bf16(w.q_host[(row * kHeads + head) * kDim + d]) * at(w.k_host, key, d);
    const double weight = std::exp(score * kScale * (kv_head == 0 ? 0.5 : 0.25));
    total += weight;
    for (int d = 0; d < kDim; ++d) sums[d] += weight * at(w.v_host, key, d);
  }
  for (double& sum : sums) sum *= (kv_head == 0 ? 2 : 1) / total;
  return sums;
}

inline void check_results(const Lengths& n, const std::vector<uint16_t>& out) {
  double error = 0, size = 0;
  for (int sequence = 0; sequence < kBatch; ++sequence)
    for (int token = 0; token < n.queries[sequence]; ++token)
      for (int head = 0; head < kHeads; ++head) {
        const std::vector<double> wanted = expected(n, sequence, token, head);
        const int row = sequence * n.queries[0] + token;
        for (int d = 0; d < kDim; ++d) {
          const double got = from_bf16(out[(row * kHeads + head) * kDim + d]);
          error += (got - wanted[d]) * (got - wanted[d]);
          size += wanted[d] * wanted[d];
        }
      }
  if (std::sqrt(error / size) <= 0.004) return;
  std::printf("WRONG: relative error %g\n", std::sqrt(error / size));
  std::exit(1);
}
