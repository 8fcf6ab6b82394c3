// Per row: token -> code; id, position, length, count and slots of the next step; tally
//
// Latency is all there is: one launch, and two loads deep. All that does not depend on the token or
// the position is loaded first; then the word of the stop bits and the pages, side by side: the
// lanes of a row each look up the slots of some kinds of layers, and the first writes the rest.
// See docs/kernels/advance_step.md.
#pragma once
#include "kernels/advance_step/advance_step.h"
#include "kernels/advance_step/rules.h"
#include "ptx/sync.cuh"
#include "tile/base.h"

namespace l4k {

constexpr int kAdvanceStepThreads = 128;
constexpr int kAdvanceStepLanes = 4;  // of a row
constexpr int kAdvanceStepRows = kAdvanceStepThreads / kAdvanceStepLanes;

__global__ void __launch_bounds__(kAdvanceStepThreads)
    advance_step_kernel(AdvanceStepParams params) {
  const int64_t row = int64_t{blockIdx.x} * kAdvanceStepRows + threadIdx.x / kAdvanceStepLanes;
  const int lane = threadIdx.x % kAdvanceStepLanes;
  const uint32_t lanes_of_row = ((1u << kAdvanceStepLanes) - 1) << (threadIdx.x % 32 - lane);

  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  if (row >= params.rows) return;
  const int length = params.seqlens_k[row];
  const int64_t token = params.sampled[row];
  const int64_t position = params.positions[row] + 1;
  const int64_t generated = params.generated[row] + 1, max_tokens = params.max_tokens[row];
  __syncwarp(lanes_of_row);  // all have read what the first lane writes
  int64_t* result = params.results + row;
  if (length <= 0) {
    if (lane == 0) result[0] = -1, result[params.results_stride] = kStepIdle;
    return;
  }

  const bool found = token >= 0 && token < params.vocab;
  const uint32_t word = found ? params.stop_bits[row * params.stop_stride + token / 32] : 0;
  const int64_t column = page_column(position, params.columns, params.page_size);
  auto page_for = [&](int kind) {
    if (kind >= params.kinds || column < 0) return -1;
    const int* pages = params.block_tables + kind * params.kind_stride + row * params.table_stride;
    return pages[column];
  };
  int page = page_for(lane);
  const StepCode code = step_code(found, word >> (token % 32) & 1, generated, max_tokens);
  const bool goes_on = code == kStepRunning;
#pragma unroll 1
  for (int kind = lane; kind < params.kinds; kind += kAdvanceStepLanes) {
    const int64_t slot = slot_on(page, position, column, params.page_size);
    params.slots[kind * params.slots_stride + row] = goes_on ? slot : -1;
    page = page_for(kind + kAdvanceStepLanes);
  }
  if (lane != 0) return;
  result[0] = token;
  result[params.results_stride] = code;
  if (found) {
    params.generated[row] = generated;
    // Nobody else adds to it; an addition in L2 is one that the thread does not wait for.
    if (params.tally != nullptr) atomicAdd(params.tally + row * params.tally_stride + token, 2);
  }
  if (params.feature_rows != nullptr) params.feature_rows[row] = -1;
  if (goes_on) params.ids[row] = token;
  params.positions[row] = goes_on ? position : 0;
  params.seqlens_k[row] = goes_on ? length + 1 : 0;
}

}  // namespace l4k
