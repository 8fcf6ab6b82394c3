// The schedule of flash_decode: the splits of all CTAs are each work item's tiles once and in order,
// partial results never share a slot, work is balanced, and how a sequence is split does not depend
// on where in the batch it stands.
#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "expect.h"
#include "kernels/flash_decode/schedule.h"

namespace {

using l4k::DecodeShape;

// What the kernel's threads add up together.
l4k::DecodeTotals totals_of(const DecodeShape& shape, const std::vector<int>& lengths) {
  l4k::DecodeTotals totals{0, 0};
  for (int length : lengths) {
    const int tiles = l4k::decode_sequence(shape, length).tiles;
    totals.tiles += int64_t{tiles} * shape.items;
    totals.largest = std::max(totals.largest, tiles);
  }
  return totals;
}

// The splits of an item have its new tokens in order, each where its key lies.
void check_new_tokens(const DecodeShape& shape, const l4k::DecodeWork& work, int64_t& before) {
  const l4k::Span tokens = work.new_tokens(shape.tokens);
  const l4k::DecodeSplit split = work.split();
  EXPECT(tokens.first == before && tokens.end >= before, tokens.first << " after " << before);
  before = tokens.end;
  for (int64_t token = tokens.first; token < tokens.end; ++token) {
    const int64_t key = work.sequence.first_position + token, tile = key / l4k::kDecodeTile;
    EXPECT(key < 0 || (tile >= split.first_tile && tile < split.first_tile + split.tiles),
           "key " << key << " of a new token");
  }
}

void check(DecodeShape shape, const std::vector<int>& lengths, int balance_percent = 0) {
  shape.batch = static_cast<int>(lengths.size());
  const int64_t items = int64_t{shape.batch} * shape.items;
  const l4k::DecodeTotals totals = totals_of(shape, lengths);
  const l4k::DecodeSplitting splitting = l4k::choose_splitting(totals, items, shape.grid);
  const l4k::DecodeSchedule schedule{splitting, splitting.one_wave ? shape.grid : totals.tiles};
  EXPECT(splitting.max_tiles >= 1, splitting.max_tiles);

  std::map<std::pair<int, int>, std::vector<std::pair<int, int>>> seen;  // item -> [begin, end)
  std::map<std::pair<int, int>, int64_t> appended;  // item -> new tokens of its splits so far
  std::set<int64_t> slots;
  int64_t splits = 0, busiest = 0;
  for (int cta = 0; cta < shape.grid; ++cta) {
    const l4k::Span part{schedule.begin_of(cta, shape.grid),
                         schedule.begin_of(cta + 1, shape.grid)};
    int64_t mine = 0, count = 0;
    auto work = l4k::first_work(shape, schedule, lengths.data(), 0, 0, part);
    // The kernel starts at a sequence further on, whose place many threads add up.
    if (!work.done(shape, schedule)) {
      int64_t place = 0;
      for (int b = 0; b < work.b; ++b) {
        const auto sequence = l4k::decode_sequence(shape, lengths[b]);
        place += shape.items *
                 schedule.item_length(l4k::split_item(sequence.tiles, splitting), sequence.tiles);
      }
      if (place <= part.first) {
        auto again = l4k::first_work(shape, schedule, lengths.data(), work.b, place, part);
        EXPECT(std::tie(again.b, again.item, again.k, again.item_begin) ==
                   std::tie(work.b, work.item, work.k, work.item_begin),
               cta);
      }
    }
    for (; !work.done(shape, schedule); work.advance(shape, schedule, lengths.data())) {
      EXPECT(work.splits.count <= shape.grid * l4k::kDecodeSplitsPerCta, work.splits.count);
      const l4k::DecodeSplit split = work.split();
      EXPECT(split.tiles >= 1 && split.tiles <= splitting.max_tiles, split.tiles);
      auto& list = seen[{work.b, work.item}];
      EXPECT(static_cast<int>(list.size()) == work.k, "split " << work.k);
      list.push_back({split.first_tile, split.first_tile + split.tiles});
      check_new_tokens(shape, work, appended[{work.b, work.item}]);
      if (work.splits.count > 1) {
        const int64_t slot = work.slot(schedule, work.k);
        EXPECT(slot >= 0 && slot < int64_t{l4k::kDecodeSlotsPerCta} * shape.grid, slot);
        EXPECT(slots.insert(slot).second, "slot " << slot << " twice");
      }
      mine += split.tiles;
      ++count, ++splits;
    }
    EXPECT(!splitting.one_wave || count <= 1, count << " splits in one wave");
    busiest = std::max(busiest, mine);
  }
  EXPECT(splits <= int64_t{shape.grid} * l4k::kDecodeSplitsPerCta + items, splits);
  for (int b = 0; b < shape.batch; ++b) {
    const auto sequence = l4k::decode_sequence(shape, lengths[b]);
    for (int item = 0; item < shape.items; ++item) {
      int at = sequence.first_tile;
      for (auto [begin, end] : seen[{b, item}]) {
        EXPECT(begin == at && end > begin, "item " << b << "," << item << " at " << at);
        at = end;
      }
      EXPECT(at == sequence.first_tile + sequence.tiles, "item " << b << "," << item);
      EXPECT((appended[{b, item}] == shape.tokens), "new tokens of item " << b << "," << item);
    }
  }
  if (balance_percent) {
    const int64_t ideal = l4k::ceil_div<int64_t>(totals.tiles, shape.grid);
    EXPECT(busiest * 100 <= ideal * balance_percent,
           busiest << " tiles where " << ideal << " are ideal");
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

void invalid_lengths_see_nothing() {
  const DecodeShape shape{1, 1, 3, 64, 1000, 4};
  for (int length : {-1, 1001, 2147483647, -2147483647 - 1}) {
    const auto sequence = l4k::decode_sequence(shape, length);
    EXPECT(!sequence.valid && sequence.keys.empty() && sequence.tiles == 1, length);
  }
  EXPECT(l4k::decode_sequence(shape, 1000).valid && l4k::decode_sequence(shape, 0).valid, "valid");
}

// The kernel counts keys in 32 bits, to the end of the block that holds the last one. A table may
// address more.
void keys_are_counted_in_32_bits() {
  const int64_t largest = std::numeric_limits<int>::max();
  for (int64_t addressed : {int64_t{1} << 31, int64_t{1} << 40, largest, largest - 1}) {
    const DecodeShape shape{1, 1, 1, 0, l4k::decode_capacity(addressed), 132};
    for (int64_t length = largest; length > l4k::kDecodeMaxKeys; --length) {
      const auto sequence = l4k::decode_sequence(shape, static_cast<int>(length));
      EXPECT(!sequence.valid && sequence.keys.empty(), length);
    }
    for (int64_t length = l4k::kDecodeMaxKeys; length > l4k::kDecodeMaxKeys - 200; --length) {
      const auto sequence = l4k::decode_sequence(shape, static_cast<int>(length));
      EXPECT(sequence.valid && sequence.keys.end == length, length);
      const int64_t tile = int64_t{sequence.first_tile} + sequence.tiles - 1;
      bool last = false;
      for (int64_t key = tile * l4k::kDecodeTile; key < sequence.keys.end;
           key += l4k::kDecodeKeyBlock) {
        EXPECT(key + l4k::kDecodeKeyBlock <= largest, key << " of " << length);
        last = key < length && length <= key + l4k::kDecodeKeyBlock;
      }
      EXPECT(last, "the last key of " << length);
    }
  }
  EXPECT(l4k::decode_capacity(1000) == 1000, "what fits stays");
}

void a_sequence_is_split_alike_at_any_place() {
  std::mt19937 random(3);
  const DecodeShape shape{4, 2, 1, 0, 1 << 24, 132};
  std::vector<int> lengths{5000, 100, 1000000, 30};
  const auto splitting = [&] {
    return l4k::choose_splitting(totals_of(shape, lengths), 8, shape.grid);
  };
  const auto before = splitting();
  std::shuffle(lengths.begin(), lengths.end(), random);
  EXPECT(before.max_tiles == splitting().max_tiles && before.one_wave == splitting().one_wave,
         before.max_tiles);
}

void two_levels_of_32_lanes_hold_every_split() {
  const int most = l4k::kDecodeMaxGrid * l4k::kDecodeSplitsPerCta;
  for (int splits = 2; splits <= most; ++splits) {
    const int size = l4k::combine_group_size(splits);
    EXPECT(size >= 2 && size <= 32 && l4k::ceil_div(splits, size) <= 32, splits);
  }
}

// 64 bits where lengths are multiplied: 10M tokens in every sequence of a large batch.
void ten_million_tokens() {
  const DecodeShape shape{0, 8, 1, 0, int64_t{1} << 31, 132};
  for (int length : {10485760, 10485759, 10485761, 2147483647}) check(shape, {length}, 110);
  check(shape, std::vector<int>(64, 10485760), 115);
  check(shape, std::vector<int>(300, 2147483647), 115);
}

}  // namespace

int main() {
  tiles_hold_the_visible_keys();
  invalid_lengths_see_nothing();
  keys_are_counted_in_32_bits();
  a_sequence_is_split_alike_at_any_place();
  two_levels_of_32_lanes_hold_every_split();
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
