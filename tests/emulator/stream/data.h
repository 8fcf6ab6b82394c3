// What the streaming kernel's mutants share: the weights, and what the products must be.
#pragma once
#include <cmath>

#include "../kernels/mutants.h"
#include "tile/int4.h"

constexpr int kWidth = 1152, kRowTiles = kWidth / 16, kBlocks = kWidth / 128;
constexpr int kExperts = 3, kTokens = 7, kTopK = 2, kRows = kTopK * kTokens;
constexpr int kOffsets[kExperts + 1] = {0, 4, 4, 6};  // the other rows are nobody's
constexpr int kOrder[kRows] = {9, 0, 13, 4, 7, kRows, 1,
                               2, 3, 5,  6, 8, 10,    11};  // one leads outside
constexpr int kRowsN = 200, kRowsK = 1112;                  // weights that are no tiles
constexpr int kTileWords = l4k::Int4Tile{}.words();

// Tokens whose sums depend on the order of addition.
inline std::vector<uint16_t> tokens(uint32_t salt) {
  std::vector<uint16_t> rows(kTokens * kWidth);
  for (size_t i = 0; i < rows.size(); ++i)
    rows[i] = to_bf16(static_cast<float>(hash(static_cast<uint32_t>(i) + salt) % 20011) / 9973 - 1);
  return rows;
}

// Weights `[experts, kWidth, kWidth]` in tiles, and as numbers.
struct Weights {
  std::vector<uint32_t> tiles;
  std::vector<float> values;

  explicit Weights(int experts)
      : tiles(size_t(experts) * kRowTiles * kBlocks * kTileWords),
        values(size_t(experts) * kWidth * kWidth) {
    for (int row = 0; row < experts * kWidth; ++row)
      for (int k = 0; k < kWidth; ++k) set(row, k);
  }

 private:
  void set(int row, int k) {
    uint32_t* tile = &tiles[(size_t(row / 16) * kBlocks + k / 128) * kTileWords];
    const uint32_t code = hash(row * kWidth + k) % 16, scale = hash(row * kBlocks + k / 128) % 100;
    const l4k::Int4Place place = l4k::int4_place(row % 16, k % 128);
    tile[place.word] |= code << 4 * place.field;
    const uint16_t bits = to_bf16(0.01f + 0.001f * static_cast<float>(scale));
    std::memcpy(reinterpret_cast<char*>(tile) + l4k::Int4Tile{}.scales(0) +
                    2 * l4k::int4_row_slot(row % 16),
                &bits, 2);
    values[size_t(row) * kWidth + k] = (static_cast<float>(code) - 8) * from_bf16(bits);
  }
};

// What the kernel must give for one token, by an expert; NaN where it must not be looked at.
inline double product(const Weights& weights, int expert, const uint16_t* token, int row) {
  double sum = 0;
  const float* w = &weights.values[(size_t(expert) * kWidth + row) * kWidth];
  for (int k = 0; k < kWidth; ++k) sum += double{w[k]} * from_bf16(token[k]);
  return sum;
}

// bf16 weights `[kRowsN, kRowsK]`.
inline std::vector<uint16_t> plain_rows() {
  std::vector<uint16_t> rows(kRowsN * kRowsK);
  for (size_t i = 0; i < rows.size(); ++i)
    rows[i] = to_bf16(static_cast<float>(hash(static_cast<uint32_t>(i) + 99) % 2003) / 997 - 1);
  return rows;
}

inline std::vector<int> offsets_and_order() {
  std::vector<int> both(kOffsets, kOffsets + kExperts + 1);
  both.insert(both.end(), kOrder, kOrder + kRows);
  return both;
}

// The device's memory, and what it is filled with before each run; the same for all mutants.
struct World {
  Weights dense{1}, experts{kExperts};
  std::vector<int> routing = offsets_and_order();
  Buffer<uint32_t> source{dense.tiles}, first{dense.tiles}, second{experts.tiles};
  Buffer<uint16_t> asked{kTokens * kWidth}, x{kTokens * kWidth}, y{kTokens * kWidth};
  Buffer<float> z{kRows * kWidth}, of_rows{kTokens * kRowsN};
  Buffer<uint16_t> rows{plain_rows()};
  Buffer<int> given{routing}, routed{routing};
  Buffer<uint32_t> error{1}, workspaces[3] = {Buffer<uint32_t>(1 << 18), Buffer<uint32_t>(1 << 18),
                                              Buffer<uint32_t>(1 << 18)};
};

inline World& world() {
  static World it;
  return it;
}

// The product with rows of weights.
inline void check_rows(const std::vector<uint16_t>& tokens, const float* got) {
  const std::vector<uint16_t> weights = plain_rows();
  for (int token = 0; token < kTokens; ++token)
    for (int row = 0; row < kRowsN; ++row) {
      double sum = 0;
      for (int k = 0; k < kRowsK; ++k)
        sum += double{from_bf16(tokens[size_t(token) * kWidth + k])} *
               from_bf16(weights[size_t(row) * kRowsK + k]);
      const float value = got[size_t(token) * kRowsN + row];
      if (std::fabs(value - sum) <= 1e-4 * std::fabs(sum) + 1e-3) continue;
      std::printf("WRONG token %d, row %d: %g for %g\n", token, row, value, sum);
      std::exit(1);
    }
}

// Of the original's results, the three products of one run that were appended last: that with rows of
// weights, the dense one, and that by expert, whose rows are those of the dense one in another order.
inline void check_results(uint32_t salt, const std::vector<float>& results) {
  const std::vector<uint16_t> rows = tokens(salt);
  const float* last = &results[results.size() - size_t(kRows) * kWidth];
  const float* middle = last - rows.size();
  check_rows(rows, middle - size_t(kTokens) * kRowsN);
  const auto expect = [](float got, double wanted, double relative, double absolute) {
    if (std::fabs(got - wanted) <= relative * std::fabs(wanted) + absolute) return;
    std::printf("WRONG %g for %g\n", got, wanted);
    std::exit(1);
  };
  for (int row = 0; row < kRows; ++row) {
    const int token = row % kTokens, source = kOrder[row] / kTopK;
    const int expert = row < kOffsets[1] ? 0 : row < kOffsets[3] ? 2 : -1;
    std::vector<uint16_t> own(kWidth);
    if (source < kTokens)
      own = to_bf16(std::vector<float>(middle + size_t(source) * kWidth,
                                       middle + size_t(source + 1) * kWidth));
    for (int n = 0; n < kWidth; n += 37) {
      expect(middle[size_t(token) * kWidth + n],
             product(world().dense, 0, &rows[size_t(token) * kWidth], n), 0.01, 0.01);
      expect(last[size_t(row) * kWidth + n],
             expert < 0 ? 0 : product(world().experts, expert, own.data(), n), 1e-4, 1e-3);
    }
  }
}
