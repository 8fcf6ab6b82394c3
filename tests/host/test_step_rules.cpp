// The rules of a step: the code of a row by a table of all that can be the case, and slots by a
// model that counts them off page by page.
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "expect.h"
#include "kernels/advance_step/rules.h"

namespace {

void a_row_ends_for_the_first_reason() {
  for (bool found : {false, true})
    for (bool stops : {false, true})
      for (int64_t limit :
           {INT64_MIN, int64_t{-1}, int64_t{0}, int64_t{4}, int64_t{5}, int64_t{6}, INT64_MAX}) {
        const bool full = limit <= 5;
        const l4k::StepCode expected = !found  ? l4k::kStepFailed
                                       : stops ? l4k::kStepStop
                                       : full  ? l4k::kStepLength
                                               : l4k::kStepRunning;
        EXPECT(l4k::step_code(found, stops, 5, limit) == expected, found << stops << " " << limit);
      }
}

void slots_count_off_the_pages() {
  for (int page_size : {1, 2, 3, 16, 64})
    for (int columns : {1, 2, 5}) {
      std::vector<int> table;
      for (int i = 0; i < columns; ++i) table.push_back(i % 3 == 2 ? -1 - i : 7 * i + 1);
      int64_t position = 0;
      for (int column = 0; column < columns; ++column)
        for (int offset = 0; offset < page_size; ++offset, ++position) {
          EXPECT(l4k::page_column(position, columns, page_size) == column, position);
          const int page = table[column];
          const int64_t expected = page < 0 ? -1 : int64_t{page} * page_size + offset;
          EXPECT(l4k::slot_on(page, position, column, page_size) == expected, position);
        }
      for (int64_t outside : {position, position + 1, int64_t{-1}, INT64_MIN, INT64_MAX})
        EXPECT(l4k::page_column(outside, columns, page_size) == -1, outside);
    }
}

void the_largest_do_not_overflow() {
  constexpr int kMost = INT32_MAX;
  constexpr int64_t kColumns = kMost, kLast = kColumns * kMost - 1;
  EXPECT(l4k::page_column(kLast, kColumns, kMost) == kColumns - 1, kLast);
  EXPECT(l4k::page_column(kLast + 1, kColumns, kMost) == -1, kLast);
  EXPECT(l4k::slot_on(kMost, kLast, kColumns - 1, kMost) == int64_t{kMost} * kMost + kMost - 1,
         kLast);
  EXPECT(l4k::slot_on(0, kLast, kColumns - 1, kMost) == kMost - 1, kLast);
}

}  // namespace

int main() {
  a_row_ends_for_the_first_reason();
  slots_count_off_the_pages();
  the_largest_do_not_overflow();
  return 0;
}
