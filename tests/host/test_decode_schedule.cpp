// The schedule of flash_decode: the splits of all CTAs are each work item's tiles once and in order,
// partial results never share a slot, work is balanced, and how a sequence is split does not depend
// on where in the batch it stands.
#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "expect.h"
#include "kernels/flash_decode/plan.h"

namespace {

using l4k::DecodeShape;

// What the kernel's threads add up together.
l4k::DecodeTotals totals_of(const DecodeShape& shape, const std::vector<int>& lengths) {
  l4k::DecodeTotals totals{0, 0};
  for (int length : lengths) {
    const int tiles = l4k::decode_sequence(shape, length).tiles;
    totals.tiles += static_cast<uint32_t>(tiles) * static_cast<uint32_t>(shape.items());
    totals.largest = std::max(totals.largest, static_cast<uint32_t>(tiles));
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

// The word that a lane of the kernel compares with its bounds.
uint32_t word_of(const l4k::DecodePlanHeader& header, const l4k::DecodePlace& place, int lane) {
  uint32_t words[32] = {};
  std::memcpy(words, &header, sizeof(header));
  std::memcpy(words + l4k::kDecodePlaces, &place, sizeof(place));
  return words[lane];
}

// What a planner makes is within the bounds that the kernels ask for.
void check_bounds(const DecodeShape& shape, const l4k::DecodePlace& place) {
  const l4k::DecodePlanBounds bounds = l4k::decode_plan_bounds(shape);
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t word = word_of({l4k::kDecodePlanKind, shape}, place, lane);
    EXPECT(bounds.of[lane].hold(word), "word " << lane << " is " << word);
  }
}

void check(DecodeShape shape, const std::vector<int>& lengths, int balance_percent = 0) {
  shape.batch = static_cast<int>(lengths.size());
  const int64_t items = int64_t{shape.batch} * shape.items();
  shape.capacity = l4k::decode_capacity(shape.capacity, items);
  const l4k::DecodeTotals totals = totals_of(shape, lengths);
  const l4k::DecodeSchedule schedule = l4k::decode_schedule(shape, totals);
  const l4k::DecodeSplitting splitting = schedule.splitting;
  EXPECT(splitting.max_tiles >= 1, splitting.max_tiles);

  using Item = std::tuple<int, int, int>;                 // sequence, head, block of rows
  std::map<Item, std::vector<std::pair<int, int>>> seen;  // [begin, end)
  std::map<Item, int64_t> appended;                       // new tokens of its splits so far
  std::set<int64_t> slots;
  int64_t splits = 0, busiest = 0;
  for (int cta = 0; cta < shape.grid; ++cta) {
    const uint32_t begin = schedule.begin_of(cta, shape.grid);
    const uint32_t end = schedule.begin_of(cta + 1, shape.grid);
    int64_t mine = 0, count = 0;
    auto work = l4k::first_work(shape, splitting, lengths.data(), 0, 0, begin, end);
    check_bounds(shape, {work, splitting});
    // The planner starts at a sequence further on, whose place many threads add up.
    if (!work.done(shape, splitting)) {
      uint32_t place = 0;
      for (int b = 0; b < work.b; ++b) {
        const auto sequence = l4k::decode_sequence(shape, lengths[b]);
        place +=
            shape.items() * splitting.item_length(splitting.split(sequence.tiles), sequence.tiles);
      }
      if (place <= begin) {
        auto again = l4k::first_work(shape, splitting, lengths.data(), work.b, place, begin, end);
        EXPECT(std::tie(again.b, again.head, again.block, again.k, again.item_begin) ==
                   std::tie(work.b, work.head, work.block, work.k, work.item_begin),
               cta);
      }
    }
    for (; !work.done(shape, splitting); work.advance(shape, splitting, lengths.data())) {
      const Item item{work.b, work.head, work.block};
      EXPECT(work.splits.count <= shape.grid * l4k::kDecodeSplitsPerCta, work.splits.count);
      const l4k::DecodeSplit split = work.split();
      EXPECT(split.tiles >= 1 && split.tiles <= splitting.max_tiles, split.tiles);
      auto& list = seen[item];
      EXPECT(static_cast<int>(list.size()) == work.k, "split " << work.k);
      list.push_back({split.first_tile, split.first_tile + split.tiles});
      check_new_tokens(shape, work, appended[item]);
      if (work.splits.count > 1) {
        const int64_t slot = work.slot(splitting, work.k);
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
    for (int i = 0; i < shape.items(); ++i) {
      const Item item{b, i / shape.row_blocks, i % shape.row_blocks};
      int at = sequence.first_tile;
      for (auto [begin, end] : seen[item]) {
        EXPECT(begin == at && end > begin, "item " << b << "," << i << " at " << at);
        at = end;
      }
      EXPECT(at == sequence.first_tile + sequence.tiles, "item " << b << "," << i);
      EXPECT((appended[item] == shape.tokens), "new tokens of item " << b << "," << i);
    }
  }
  if (balance_percent) {
    const int64_t ideal = l4k::ceil_div<int64_t>(totals.tiles, shape.grid);
    EXPECT(busiest * 100 <= ideal * balance_percent,
           busiest << " tiles where " << ideal << " are ideal");
  }
}

// One kind or shape that differs, and no other call's plan fits; nor does a place outside the call.
void another_calls_plan_does_not_fit() {
  const DecodeShape shape{2, 8, 1, 1, 8192, 65536, 132};
  const l4k::DecodePlanBounds bounds = l4k::decode_plan_bounds(shape);
  const auto fits = [&](const l4k::DecodePlanHeader& header, const l4k::DecodePlace& place) {
    for (int lane = 0; lane < 32; ++lane)
      if (!bounds.of[lane].hold(word_of(header, place, lane))) return false;
    return true;
  };
  const l4k::DecodePlanHeader header{l4k::kDecodePlanKind, shape};
  const l4k::DecodePlace nothing = l4k::no_decode_work(shape, {1, 1});
  EXPECT(fits(header, nothing), "its own");
  for (int word = 0; word < l4k::kDecodeHeaderWords; ++word)
    for (unsigned change : {~0u, 1u, 1u << 30}) {  // unsigned: a capacity may be the largest int
      l4k::DecodePlanHeader other = header;
      reinterpret_cast<unsigned*>(&other)[word] += change;
      EXPECT(!fits(other, nothing), "header word " << word);
    }
  for (int word : {0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14}) {
    l4k::DecodePlace other = nothing;
    for (int wrong : {std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
      reinterpret_cast<int*>(&other)[word] = wrong;
      EXPECT(!fits(header, other), "place word " << word);
    }
  }
}

void pages_are_found_without_a_division() {
  std::mt19937 random(5);
  const uint32_t most = (1u << 27) - 1;
  for (int trial = 0; trial < 200000; ++trial) {
    const uint32_t value = trial < 300 ? trial + 1 : 1 + random() % (trial % 3 ? 4096 : most);
    const auto divisor = l4k::BlockDivisor::of(value);
    for (uint32_t n : {uint32_t(random()) & most, most, most / value * value, value - 1, 0u})
      EXPECT(divisor.quotient(n) == static_cast<int>(n / value), n << " / " << value);
  }
}

// Against a mask written out key by key.
void tiles_hold_the_visible_keys() {
  for (int chunk : {0, 1, 3, 16, 64, 128, 200, 8192})
    for (int tokens : {1, 2, 5, 16})
      for (int length :
           {0, 1, 2, 15, 16, 17, 127, 128, 129, 400, 8190, 8191, 8192, 8193, 16383, 16384, 16385}) {
        const DecodeShape shape{1, 1, 1, tokens, chunk, 1 << 20, 4};
        const auto sequence = l4k::decode_sequence(shape, length);
        int first = -1, end = 0;
        for (int key = 0; key < length; ++key)
          for (int p = std::max(length - tokens, 0); p < length; ++p)
            if (key <= p && (chunk == 0 || key / chunk == p / chunk)) {
              if (first < 0) first = key;
              end = key + 1;
            }
        first = std::max(first, 0);
        EXPECT(sequence.first_key == first && std::max(sequence.end_key(tokens), 0) == end,
               length << "/" << chunk);
        EXPECT(sequence.first_tile == first / l4k::kDecodeTile, length);
        const int last = end == 0 ? 0 : (end - 1) / l4k::kDecodeTile;
        EXPECT(sequence.tiles == last - sequence.first_tile + 1, length);
      }
}

void invalid_lengths_see_nothing() {
  const DecodeShape shape{1, 1, 1, 3, 64, 1000, 4};
  for (int length : {-1, 1001, 2147483647, -2147483647 - 1}) {
    const auto sequence = l4k::decode_sequence(shape, length);
    EXPECT(!l4k::decode_length_fits(shape, length), length);
    EXPECT(sequence.end_key(shape.tokens) == 0 && sequence.tiles == 1, length);
  }
  EXPECT(l4k::decode_length_fits(shape, 1000) && l4k::decode_length_fits(shape, 0), "valid");
}

// The kernel counts keys in 32 bits, to the end of the block that holds the last one. A table may
// address more.
void keys_are_counted_in_32_bits() {
  const int64_t largest = std::numeric_limits<int>::max();
  for (int64_t addressed : {int64_t{1} << 31, int64_t{1} << 40, largest, largest - 1}) {
    const DecodeShape shape{1, 1, 1, 1, 0, l4k::decode_capacity(addressed, 1), 132};
    for (int64_t length = largest; length > l4k::kDecodeMaxKeys; --length)
      EXPECT(!l4k::decode_length_fits(shape, static_cast<int>(length)), length);
    for (int64_t length = l4k::kDecodeMaxKeys; length > l4k::kDecodeMaxKeys - 200; --length) {
      const auto sequence = l4k::decode_sequence(shape, static_cast<int>(length));
      const int end = sequence.end_key(shape.tokens);
      EXPECT(l4k::decode_length_fits(shape, length) && end == length, length);
      const int64_t tile = int64_t{sequence.first_tile} + sequence.tiles - 1;
      bool last = false;
      for (int64_t key = tile * l4k::kDecodeTile; key < end; key += l4k::kDecodeKeyBlock) {
        EXPECT(key + l4k::kDecodeKeyBlock <= largest, key << " of " << length);
        last = key < length && length <= key + l4k::kDecodeKeyBlock;
      }
      EXPECT(last, "the last key of " << length);
    }
  }
  EXPECT(l4k::decode_capacity(1000, 64) == 1000, "what fits stays");
  for (int64_t items : {1, 3, 512, 100000, 1 << 30}) {
    const int64_t tiles = l4k::ceil_div<int64_t>(l4k::decode_capacity(1ll << 40, items), 64);
    EXPECT(tiles * items <= l4k::kDecodeMaxTiles, items << " items of " << tiles << " tiles");
  }
}

void a_sequence_is_split_alike_at_any_place() {
  std::mt19937 random(3);
  const DecodeShape shape{4, 2, 1, 1, 0, 1 << 24, 132};
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

// 10M tokens in every sequence of a large batch, and as many as 32 bits count.
void ten_million_tokens() {
  const DecodeShape shape{0, 8, 1, 1, 0, l4k::decode_capacity(1ll << 31, 1), 132};
  for (int length : {10485760, 10485759, 10485761, shape.capacity}) check(shape, {length}, 110);
  check(shape, std::vector<int>(64, 10485760), 115);
  check(shape, std::vector<int>(300, l4k::decode_capacity(1ll << 31, 2400)), 115);
}

}  // namespace

int main() {
  tiles_hold_the_visible_keys();
  invalid_lengths_see_nothing();
  keys_are_counted_in_32_bits();
  a_sequence_is_split_alike_at_any_place();
  two_levels_of_32_lanes_hold_every_split();
  another_calls_plan_does_not_fit();
  pages_are_found_without_a_division();
  ten_million_tokens();
  const int capacity = 1 << 24;
  for (int heads : {1, 2, 5, 8, 16})
    for (int length : {1024, 8192, 131072, 1 << 20}) {
      check({0, heads, 1, 1, 0, capacity, 132}, {length}, length > 100000 ? 110 : 0);
      check({0, heads, 1, 1, 0, capacity, 132}, std::vector<int>(16, length), 140);
    }
  // Mixed lengths of a serving batch.
  std::mt19937 random(1);
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<int> lengths(64);
    for (int& length : lengths)
      length = 1 + static_cast<int>(random() % (1u << (8 + random() % 10)));
    check({0, 8, 1, 1, 0, capacity, 132}, lengths, 130);
  }
  for (int trial = 0; trial < 6000; ++trial) {
    const int shift = static_cast<int>(random() % 20);
    std::vector<int> lengths(1 + random() % (trial % 10 ? 20 : 1024));
    for (int& length : lengths)
      length = random() % 5 ? static_cast<int>(random() % (1u << shift)) : 0;
    if (trial % 7 == 0) lengths[random() % lengths.size()] = 10485760;
    const int chunks[] = {0, 0, 1, 3, 64, 128, 8192};
    check({0, 1 + static_cast<int>(random() % 5), 1 + static_cast<int>(random() % 3),
           1 + static_cast<int>(random() % 16), chunks[random() % 7], trial % 11 ? capacity : 5000,
           1 + static_cast<int>(random() % 140)},
          lengths);
  }
}
