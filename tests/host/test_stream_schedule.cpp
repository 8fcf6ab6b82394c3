// The schedule of stream_gemm: the runs of all CTAs are every unit once and in order, a run that is
// not whole has a slot of its own, the slots of a row tile are listed from the end of K to its start,
// and SMs get equal bytes of Llama 4's weights.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "expect.h"
#include "kernels/stream_gemm/schedule.h"
#include "tile/few_rows.h"
#include "tile/norm.h"

namespace {

using l4k::StreamItem;
using l4k::StreamRows;
using l4k::StreamRun;
using l4k::StreamSchedule;

constexpr int kBlockBytes = 256;  // bf16 rows of A, 128 of K

struct Problem {
  std::vector<int> counts;  // rows by expert
  int row_tiles, k_blocks, ctas;

  int rows() const {
    int sum = 0;
    for (int count : counts) sum += count;
    return sum;
  }
  int tokens() const { return rows() <= 8 ? 8 : 16; }
  StreamRows layout() const {
    return StreamRows::of(std::min(rows(), tokens()), std::min(rows(), tokens()), k_blocks,
                          kBlockBytes);
  }
};

struct Items {
  std::vector<StreamItem> list;
  int sliced_tiles = 0;
};

// What one warp of the kernel lists.
Items items_of(const Problem& p) {
  const StreamRows layout = p.layout();
  Items items;
  int row = 0, unit = 0;
  for (size_t e = 0; e < p.counts.size(); ++e)
    for (int left = p.counts[e]; left > 0;) {
      const int taken = std::min(left, p.tokens()), slices = layout.slices(taken);
      for (int slice = 0; slice < slices; ++slice) {
        const int first = layout.first_block(slice, slices);
        const int blocks = layout.first_block(slice + 1, slices) - first;
        unit += blocks * p.row_tiles;
        items.list.push_back({static_cast<int>(e), row, taken, first, blocks, slice, slices, unit,
                              items.sliced_tiles});
        if (slices > 1) items.sliced_tiles += p.row_tiles;
      }
      row += taken;
      left -= taken;
    }
  return items;
}

// Items cover each row's K once, and their rows fit in shared memory.
void check_items(const Problem& p, const Items& items) {
  const StreamRows layout = p.layout();
  std::map<int, int> covered;  // blocks by first row
  for (const StreamItem& item : items.list) {
    EXPECT(item.blocks >= 1 && item.first_block == covered[item.row], "item at row " << item.row);
    covered[item.row] += item.blocks;
    const int64_t bytes = int64_t{item.rows} * StreamRows::pitch(item.blocks, kBlockBytes);
    EXPECT(bytes <= layout.capacity && layout.capacity <= l4k::kStreamMaxRowBytes, bytes);
  }
  for (auto [row, blocks] : covered) EXPECT(blocks == p.k_blocks, "row " << row);
  EXPECT(static_cast<int64_t>(items.list.size()) <= layout.most_items(p.rows(), p.tokens(), false),
         items.list.size());
  EXPECT(items.sliced_tiles <= p.row_tiles * layout.most_items(p.rows(), p.tokens(), true),
         items.sliced_tiles);
}

using RowTile = std::pair<int, int>;  // first row of A, row tile of the weight

void check(const Problem& p) {
  const Items items = items_of(p);
  check_items(p, items);
  const int units = items.list.back().end_unit;
  const StreamSchedule schedule{items.list.data(), static_cast<int>(items.list.size()), p.row_tiles,
                                StreamSchedule::shares_of(units, p.ctas)};
  const l4k::Shares& shares = schedule.shares;
  EXPECT(shares.ctas >= 1 && shares.ctas <= p.ctas, shares.ctas);
  EXPECT(shares.ctas == 1 || units / shares.ctas >= l4k::kStreamMinUnits, units);
  const int slots = StreamSchedule::slots(items.sliced_tiles, shares.ctas);
  int at = 0;
  std::set<int> taken;
  std::map<RowTile, std::vector<int>> meeting;  // slots, in the order in which runs come
  for (int cta = 0; cta < shares.ctas; ++cta) {
    const int end = shares.first(cta + 1);
    StreamRun run = schedule.first(cta);
    EXPECT(run.begin == shares.first(cta), "CTA " << cta);
    for (;; run = schedule.next(run, end)) {
      const StreamItem& item = items.list[run.item];
      const int first = schedule.first_unit(run.item, run.tile);
      EXPECT(run.begin == at && run.end > run.begin && run.end <= end, "unit " << at);
      EXPECT(first <= run.begin && run.end <= first + item.blocks, "unit " << at);
      at = run.end;
      const bool whole = item.slices == 1 && run.end - run.begin == p.k_blocks;
      EXPECT(schedule.whole(run) == whole, "unit " << at);
      const int slot = schedule.slot(run.item, run.tile, cta);
      if (!whole) {
        EXPECT(slot >= 0 && slot < slots, slot << " of " << slots);
        EXPECT(taken.insert(slot).second, "slot " << slot << " twice");
        meeting[{item.row, run.tile}].push_back(slot);
      }
      if (run.end == end) break;
    }
  }
  EXPECT(at == units, at << " units of " << units);
  for (int i = 0; i < schedule.num_items; ++i)
    for (int tile = 0; tile < p.row_tiles; ++tile) {
      const auto made = meeting.find({items.list[i].row, tile});
      if (made == meeting.end()) continue;
      std::vector<int> listed;  // from the end of K to its start
      schedule.for_each_run(i, tile, [&](int slot) { listed.push_back(slot); });
      std::reverse(listed.begin(), listed.end());
      EXPECT(listed == made->second, "runs of item " << i << ", row tile " << tile);
    }
}

// ---- Llama 4 ------------------------------------------------------------------------------------

struct Matrix {
  const char* name;
  int n, k;
  bool splits_n;  // on several GPUs; else K
};

constexpr Matrix kMatrices[] = {
    {"qkv", 7168, 5120, true},
    {"o", 5120, 5120, false},
    {"gate_up", 16384, 5120, true},
    {"down", 5120, 8192, false},
};
constexpr int kSms = 132;

// A unit is a tile: equal units are equal bytes.
void sms_get_equal_bytes() {
  for (const Matrix& matrix : kMatrices)
    for (int gpus : {1, 2, 4, 8}) {
      const int n = matrix.splits_n ? matrix.n / gpus : matrix.n;
      const int k = matrix.splits_n ? matrix.k : matrix.k / gpus;
      const l4k::Shares shares = StreamSchedule::shares_of(n / 16 * (k / 128), kSms);
      EXPECT(shares.ctas == kSms, matrix.name << " on " << gpus);
      const int most = l4k::ceil_div(shares.units, kSms), least = shares.units / kSms;
      const int percent = gpus <= 2 ? 3 : 8;
      EXPECT(100 * (most - least) <= percent * most,
             matrix.name << " on " << gpus << ": " << least << " to " << most << " tiles");
      for (int tokens : {1, 8, 9, 16}) check({{tokens}, n / 16, k / 128, kSms});
      check({std::vector<int>(17, 1), n / 16, k / 128, kSms});  // 16 experts and the shared one
    }
}

// ---- All others ---------------------------------------------------------------------------------

void small_problems() {
  for (int row_tiles = 1; row_tiles <= 4; ++row_tiles)
    for (int k_blocks = 1; k_blocks <= 12; ++k_blocks)
      for (int ctas = 1; ctas <= 9; ++ctas)
        for (int experts = 1; experts <= 4; ++experts)
          check({std::vector<int>(experts, 1), row_tiles, k_blocks, ctas});
}

void sliced_items() {
  for (int rows : {1, 5, 8, 9, 12, 16, 17, 31})
    for (int k_blocks : {16, 17, 32, 40, 64, 65, 208, 263, 264, 300})
      for (int ctas : {1, 2, 7, 132})
        for (int row_tiles : {1, 3, 20}) check({{rows}, row_tiles, k_blocks, ctas});
}

// The most items of any division of rows among experts, by dynamic programming.
void no_offsets_make_more_items_than_there_is_room_for() {
  for (int tokens : {8, 16})
    for (int k_blocks = 1; k_blocks <= 1100; k_blocks += k_blocks < 300 ? 1 : 37) {
      const int most_rows = tokens == 8 ? 8 : 128;
      for (int m : {1, 2, 5, 8, 9, 16, 17, 32, 100, 128}) {
        if (m > most_rows || (tokens == 16) != (m > 8)) continue;
        for (int experts : {1, 17}) {
          const StreamRows layout =
              l4k::stream_rows(l4k::StreamFormat::kInt4, m, 128 * k_blocks, experts);
          std::vector<int> items(m + 1), sliced(m + 1);
          for (int sum = 1; sum <= m; ++sum)
            for (int rows = 1; rows <= std::min(sum, tokens); ++rows) {
              const int slices = layout.slices(rows);
              EXPECT(layout.room(rows) >= 1, rows << " rows");
              items[sum] = std::max(items[sum], items[sum - rows] + slices);
              sliced[sum] = std::max(sliced[sum], sliced[sum - rows] + (slices > 1 ? slices : 0));
            }
          EXPECT(layout.most_items(m, tokens, false) >= items[m], m << " rows of " << k_blocks);
          EXPECT(layout.most_items(m, tokens, true) >= sliced[m], m << " rows of " << k_blocks);
          // Not so careful that what fits is refused: an expert each, all with one row.
          if (layout.slices(std::min(m, tokens)) == 1)
            EXPECT(layout.most_items(m, tokens, false) == m, m);
        }
      }
    }
  // Sizes are those of tensors, whatever they are.
  const StreamRows layout = StreamRows::of(1, 1, (1 << 24) - 1, kBlockBytes);
  EXPECT(layout.capacity == l4k::kStreamMaxRowBytes, layout.capacity);
  EXPECT(layout.most_items(2'000'000'000, 16, false) > l4k::kStreamMaxItems, "64 bits");
}

// A layer gathers rows by their number alone: of every width that a norm takes there is room for them.
void rows_that_are_gathered_have_room() {
  for (auto format : {l4k::StreamFormat::kInt4, l4k::StreamFormat::kBf16})
    for (int k = 8; k <= l4k::kNormMaxWidth; k += 8)
      for (int m = 1; m <= l4k::kFewRaggedRows; ++m)
        EXPECT(l4k::can_stream(format, m, k, 17), m << " rows of " << k);
}

void ragged_batches(int trials) {
  std::mt19937 random(1);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (int trial = 0; trial < trials; ++trial) {
    std::vector<int> counts(1 + below(trial % 5 ? 20 : 130));
    int left = 1 + below(trial % 3 ? 16 : 100);
    counts[below(static_cast<int>(counts.size()))] = 1;
    for (--left; left > 0;) {
      const int taken = 1 + below(left);
      counts[below(static_cast<int>(counts.size()))] += taken;
      left -= taken;
    }
    const int k_blocks = trial % 4 ? 1 + below(50) : 1 + below(300);
    const Problem p{counts, 1 + below(30), k_blocks, 1 + below(140)};
    if (p.layout().most_items(p.rows(), p.tokens(), false) <= l4k::kStreamMaxItems) check(p);
  }
}

}  // namespace

int main() {
  sms_get_equal_bytes();
  small_problems();
  sliced_items();
  no_offsets_make_more_items_than_there_is_room_for();
  rows_that_are_gathered_have_room();
  ragged_batches(4000);
}
