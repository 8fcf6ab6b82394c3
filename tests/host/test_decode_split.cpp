// The plan of flash_decode: the pieces of all CTAs are each item's tiles once and in order, partial
// results never share a slot, work is balanced, and how a sequence is cut does not depend on where
// in the batch it stands.
#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "expect.h"
#include "kernels/flash_decode/split.h"

namespace {

using l4k::DecodeShape;

// What the kernel's threads add up together.
l4k::DecodeTotals totals_of(const DecodeShape& shape, const std::vector<int>& lengths) {
  l4k::DecodeTotals totals{0, 0};
  for (int length : lengths) {
    const int tiles = l4k::decode_sequence(shape, length).tiles;
    totals.tiles += int64_t{tiles} * shape.heads;
    totals.largest = std::max(totals.largest, tiles);
  }
  return totals;
}

void check(DecodeShape shape, const std::vector<int>& lengths, int balance_percent = 0) {
  shape.batch = static_cast<int>(lengths.size());
  const int64_t items = int64_t{shape.batch} * shape.heads;
  const l4k::DecodeTotals totals = totals_of(shape, lengths);
  const l4k::DecodeSplit split = l4k::decode_split(totals, items, shape.grid);
  const l4k::DecodeLine line{split, split.one_wave ? shape.grid : totals.tiles};
  EXPECT(split.size >= 1, split.size);

  std::map<std::pair<int, int>, std::vector<std::pair<int, int>>> seen;  // item -> [begin, end)
  std::set<int64_t> slots;
  int64_t pieces = 0, most = 0;
  for (int cta = 0; cta < shape.grid; ++cta) {
    const int64_t begin = line.begin_of(cta, shape.grid), end = line.begin_of(cta + 1, shape.grid);
    int64_t mine = 0, count = 0;
    auto walk = l4k::decode_walk(shape, line, lengths.data(), 0, 0, begin, end);
    // The kernel starts at a sequence further on, with the line's place added up by many threads.
    if (!walk.done(shape, line)) {
      int64_t place = 0;
      for (int b = 0; b < walk.b; ++b) {
        const auto sequence = l4k::decode_sequence(shape, lengths[b]);
        place +=
            shape.heads * line.item_length(l4k::decode_cut(sequence.tiles, split), sequence.tiles);
      }
      if (place <= begin) {
        auto again = l4k::decode_walk(shape, line, lengths.data(), walk.b, place, begin, end);
        EXPECT(std::tie(again.b, again.head, again.k, again.item_begin) ==
                   std::tie(walk.b, walk.head, walk.k, walk.item_begin),
               cta);
      }
    }
    for (; !walk.done(shape, line); walk.advance(shape, line, lengths.data())) {
      EXPECT(walk.cut.pieces <= shape.grid * l4k::kDecodePiecesPerCta, walk.cut.pieces);
      const l4k::Piece piece = walk.piece();
      EXPECT(piece.tiles >= 1 && piece.tiles <= split.size, piece.tiles);
      auto& list = seen[{walk.b, walk.head}];
      EXPECT(static_cast<int>(list.size()) == walk.k, "piece " << walk.k);
      list.push_back({piece.first_tile, piece.first_tile + piece.tiles});
      if (walk.cut.pieces > 1) {
        const int64_t slot = walk.slot(line, walk.k);
        EXPECT(slot >= 0 && slot < int64_t{l4k::kDecodeSlotsPerCta} * shape.grid, slot);
        EXPECT(slots.insert(slot).second, "slot " << slot << " twice");
      }
      mine += piece.tiles;
      ++count, ++pieces;
    }
    EXPECT(!split.one_wave || count <= 1, count << " pieces in one wave");
    most = std::max(most, mine);
  }
  EXPECT(pieces <= int64_t{shape.grid} * l4k::kDecodePiecesPerCta + items, pieces);
  for (int b = 0; b < shape.batch; ++b) {
    const auto sequence = l4k::decode_sequence(shape, lengths[b]);
    for (int head = 0; head < shape.heads; ++head) {
      int at = sequence.first_tile;
      for (auto [begin, end] : seen[{b, head}]) {
        EXPECT(begin == at && end > begin, "item " << b << "," << head << " at " << at);
        at = end;
      }
      EXPECT(at == sequence.first_tile + sequence.tiles, "item " << b << "," << head);
    }
  }
  if (balance_percent) {
    const int64_t ideal = l4k::ceil_div<int64_t>(totals.tiles, shape.grid);
    EXPECT(most * 100 <= ideal * balance_percent, most << " tiles where " << ideal << " are ideal");
  }
}

// Against a mask written out key by key.
void tiles_hold_the_visible_keys() {
  for (int chunk : {0, 1, 3, 16, 64, 128, 200, 8192})
    for (int tokens : {1, 2, 5, 16})
      for (int length :
           {0, 1, 2, 15, 16, 17, 127, 128, 129, 400, 8190, 8191, 8192, 8193, 16383, 16384, 16385}) {
        const DecodeShape shape{1, 1, tokens, chunk, 1 << 20, 4};
        const auto sequence = l4k::decode_sequence(shape, length);
        int first = -1, end = 0;
        for (int key = 0; key < length; ++key)
          for (int p = std::max(length - tokens, 0); p < length; ++p)
            if (key <= p && (chunk == 0 || key / chunk == p / chunk)) {
              if (first < 0) first = key;
              end = key + 1;
            }
        first = std::max(first, 0);
        EXPECT(sequence.keys.first == first && sequence.keys.end == end, length << "/" << chunk);
        EXPECT(sequence.first_tile == first / l4k::kDecodeTile, length);
        const int last = end == 0 ? 0 : (end - 1) / l4k::kDecodeTile;
        EXPECT(sequence.tiles == last - sequence.first_tile + 1, length);
      }
}

void hostile_lengths_see_nothing() {
  const DecodeShape shape{1, 1, 3, 64, 1000, 4};
  for (int length : {-1, 1001, 2147483647, -2147483647 - 1}) {
    const auto sequence = l4k::decode_sequence(shape, length);
    EXPECT(!sequence.valid && sequence.keys.empty() && sequence.tiles == 1, length);
  }
  EXPECT(l4k::decode_sequence(shape, 1000).valid && l4k::decode_sequence(shape, 0).valid, "valid");
}

// The kernel counts keys in 32 bits, to the end of the granule that holds the last one. A table may
// address more.
void keys_are_counted_in_32_bits() {
  const int64_t most = std::numeric_limits<int>::max();
  for (int64_t addressed : {int64_t{1} << 31, int64_t{1} << 40, most, most - 1}) {
    const DecodeShape shape{1, 1, 1, 0, l4k::decode_capacity(addressed), 132};
    for (int64_t length = most; length > l4k::kDecodeMaxKeys; --length) {
      const auto sequence = l4k::decode_sequence(shape, static_cast<int>(length));
      EXPECT(!sequence.valid && sequence.keys.empty(), length);
    }
    for (int64_t length = l4k::kDecodeMaxKeys; length > l4k::kDecodeMaxKeys - 200; --length) {
      const auto sequence = l4k::decode_sequence(shape, static_cast<int>(length));
      EXPECT(sequence.valid && sequence.keys.end == length, length);
      const int64_t tile = int64_t{sequence.first_tile} + sequence.tiles - 1;
      bool last = false;
      for (int64_t key = tile * l4k::kDecodeTile; key < sequence.keys.end;
           key += l4k::kDecodeGranule) {
        EXPECT(key + l4k::kDecodeGranule <= most, key << " of " << length);
        last = key < length && length <= key + l4k::kDecodeGranule;
      }
      EXPECT(last, "the last key of " << length);
    }
  }
  EXPECT(l4k::decode_capacity(1000) == 1000, "what fits is not cut");
}

void a_sequence_is_cut_alike_at_any_place() {
  std::mt19937 random(3);
  const DecodeShape shape{4, 2, 1, 0, 1 << 24, 132};
  std::vector<int> lengths{5000, 100, 1000000, 30};
  const auto split = [&] { return l4k::decode_split(totals_of(shape, lengths), 8, shape.grid); };
  const auto before = split();
  std::shuffle(lengths.begin(), lengths.end(), random);
  EXPECT(before.size == split().size && before.one_wave == split().one_wave, before.size);
}

// 64 bits where lengths are multiplied: 10M tokens in every sequence of a large batch.
void two_levels_of_32_lanes_hold_every_piece() {
  const int most = l4k::kDecodeMaxGrid * l4k::kDecodePiecesPerCta;
  for (int pieces = 2; pieces <= most; ++pieces) {
    const int fan = l4k::decode_fan(pieces);
    EXPECT(fan >= 2 && fan <= 32 && l4k::ceil_div(pieces, fan) <= 32, pieces);
  }
}

void ten_million_tokens() {
  const DecodeShape shape{0, 8, 1, 0, int64_t{1} << 31, 132};
  for (int length : {10485760, 10485759, 10485761, 2147483647}) check(shape, {length}, 110);
  check(shape, std::vector<int>(64, 10485760), 115);
  check(shape, std::vector<int>(300, 2147483647), 115);
}

}  // namespace

int main() {
  tiles_hold_the_visible_keys();
  hostile_lengths_see_nothing();
  keys_are_counted_in_32_bits();
  a_sequence_is_cut_alike_at_any_place();
  two_levels_of_32_lanes_hold_every_piece();
  ten_million_tokens();
  const int64_t capacity = 1 << 24;
  for (int heads : {1, 2, 5, 8, 16})
    for (int length : {1024, 8192, 131072, 1 << 20}) {
      check({0, heads, 1, 0, capacity, 132}, {length}, length > 100000 ? 110 : 0);
      check({0, heads, 1, 0, capacity, 132}, std::vector<int>(16, length), 140);
    }
  // Mixed lengths of a serving batch.
  std::mt19937 random(1);
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<int> lengths(64);
    for (int& length : lengths)
      length = 1 + static_cast<int>(random() % (1u << (8 + random() % 10)));
    check({0, 8, 1, 0, capacity, 132}, lengths, 130);
  }
  for (int trial = 0; trial < 6000; ++trial) {
    const int shift = static_cast<int>(random() % 20);
    std::vector<int> lengths(1 + random() % (trial % 10 ? 20 : 1024));
    for (int& length : lengths)
      length = random() % 5 ? static_cast<int>(random() % (1u << shift)) : 0;
    if (trial % 7 == 0) lengths[random() % lengths.size()] = 10485760;
    const int chunks[] = {0, 0, 1, 3, 64, 128, 8192};
    check(
        {0, 1 + static_cast<int>(random() % 9), 1 + static_cast<int>(random() % 16),
         chunks[random() % 7], trial % 11 ? capacity : 5000, 1 + static_cast<int>(random() % 140)},
        lengths);
  }
}
