// A plan: the schedule of one batch as words in device memory. It is made once for all layers of a kind,
// says for what call it was made, and also holds the counters of the partial results.
//
//   words                 hold
//   16                    kind and shape of the call; the rest is not used
//   16 x kDecodeMaxGrid   the first split of each CTA
//   8 x kDecodeMaxGrid    counters: 0 but while an item's partial results are being combined
//   batch                 the lengths that it was made from
//
// Whoever takes a plan compares each word that it uses with its bounds: no contents lead out of memory
// or into a wait without an end.
#pragma once
#include "kernels/flash_decode/schedule.h"

namespace l4k {

constexpr int kDecodePlanKind = 0x6c346b31;

struct DecodePlanHeader {
  int kind;
  DecodeShape shape;
};

// Where a CTA begins.
struct alignas(16) DecodePlace {
  DecodeWork work;
  DecodeSplitting splitting;
};

constexpr int kDecodePlaceWords = 16;
static_assert(sizeof(DecodePlace) == 4 * kDecodePlaceWords);
constexpr int kDecodeHeaderWords = sizeof(DecodePlanHeader) / 4;
// Where they begin, in words.
constexpr int kDecodePlaces = 16;
constexpr int kDecodeCounters = kDecodePlaces + kDecodeMaxGrid * kDecodePlaceWords;
constexpr int kDecodeLengths = kDecodeCounters + kDecodeMaxGrid * kDecodeSlotsPerCta;

// Of a CTA that has nothing to do.
L4K_HD constexpr DecodePlace no_decode_work(const DecodeShape& shape,
                                            const DecodeSplitting& splitting) {
  DecodeWork work{};
  work.b = shape.batch;
  work.sequence = decode_sequence(shape, 0);
  work.splits = {1, 1, 0};
  return {work, splitting};
}

// The values that a word may have.
struct WordBounds {
  uint32_t first, span;  // from `first` to `first + span`

  L4K_HD constexpr bool hold(uint32_t word) const { return word - first <= span; }
};

// By lane of a warp: 16 words of the header, 16 of a CTA's place.
struct DecodePlanBounds {
  WordBounds of[32];
};

constexpr DecodePlanBounds decode_plan_bounds(const DecodeShape& shape) {
  DecodePlanBounds bounds{};
  for (WordBounds& any : bounds.of) any = {0, 0xffffffff};
  const int header[] = {kDecodePlanKind, shape.batch, shape.kv_heads, shape.row_blocks,
                        shape.tokens,    shape.chunk, shape.capacity, shape.grid};
  static_assert(sizeof(header) == sizeof(DecodePlanHeader));
  for (int i = 0; i < kDecodeHeaderWords; ++i) bounds.of[i] = {static_cast<uint32_t>(header[i]), 0};
  const auto within = [](int first, int last) {
    return WordBounds{static_cast<uint32_t>(first), static_cast<uint32_t>(last - first)};
  };
  const int tiles = static_cast<int>(ceil_div<int64_t>(shape.capacity, kDecodeTile)) + 1;
  const int splits = kDecodeMaxGrid * kDecodeSplitsPerCta;
  const WordBounds any{0, 0xffffffff};
  const WordBounds place[] = {
      within(0, shape.batch),                                // b
      within(0, shape.kv_heads - 1),                         // head
      within(0, shape.row_blocks - 1),                       // block
      within(0, splits - 1),                                 // k
      any,                                                   // item_begin
      any,                                                   // end
      within(-shape.tokens, shape.capacity - shape.tokens),  // first_position
      within(0, shape.capacity),                             // first_key
      within(0, tiles),                                      // first_tile
      within(1, tiles),                                      // tiles
      within(1, splits),                                     // count
      within(0, tiles),                                      // quotient
      within(0, splits),                                     // remainder
      within(1, tiles),                                      // max_tiles
      within(0, 1),                                          // one_wave
  };
  for (int i = 0; const WordBounds& word : place) bounds.of[kDecodePlaces + i++] = word;
  return bounds;
}

// Divides numbers below 2^27, such as a key block's, by a product and a shift.
struct BlockDivisor {
  uint32_t factor;
  int shift;

  static constexpr BlockDivisor of(uint32_t value) {
    int shift = 27;
    while ((uint64_t{1} << (shift - 27)) < value) ++shift;
    return {static_cast<uint32_t>(((uint64_t{1} << shift) + value - 1) / value), shift};
  }
  L4K_HD constexpr int quotient(uint32_t n) const {
    return static_cast<int>(uint64_t{n} * factor >> shift);
  }
};

}  // namespace l4k
