// What becomes of a row after a step, as integers: plain C++.
#pragma once
#include "tile/base.h"

namespace l4k {

// The names are those of l4kernels/ops/step.py.
enum StepCode : int { kStepRunning, kStepStop, kStepLength, kStepFailed, kStepIdle };

// Of a row with a request. `found`: the token is one of the vocabulary; `generated` counts it.
L4K_HD constexpr StepCode step_code(bool found, bool stops, int64_t generated, int64_t max_tokens) {
  if (!found) return kStepFailed;
  if (stops) return kStepStop;
  return generated >= max_tokens ? kStepLength : kStepRunning;
}

// Where a block table has the page of a position; -1: nowhere.
L4K_HD constexpr int64_t page_column(int64_t position, int64_t columns, int page_size) {
  return position < 0 || position >= columns * page_size ? -1 : position / page_size;
}

// Where keys and values of a position go, on the page of its column; -1: nowhere, there is none.
L4K_HD constexpr int64_t slot_on(int page, int64_t position, int64_t column, int page_size) {
  return page < 0 ? -1 : position + (page - column) * page_size;
}

}  // namespace l4k
