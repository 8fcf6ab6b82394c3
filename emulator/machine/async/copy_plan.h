// What one bulk copy moves: runs that are contiguous on both sides.
#pragma once

#include <vector>

#include "machine/core/memory.h"
#include "tensor/tensor_map.h"

namespace l4k::emu {

struct CopyRun {
  uint64_t global;
  uint32_t shared, bytes;
  bool in_bounds;
};
struct CopyPlan {
  std::vector<CopyRun> runs;
  uint32_t bytes = 0;
  uint64_t fill = 0;
  uint32_t fill_bytes = 0;  // element size of the fill pattern
};

TensorMap tensor_map(Warp& w, uint64_t address, int lane);
// A box of the map at the coordinates in the instruction's list.
CopyPlan tensor_plan(Warp& w, const Inst& in, const TensorMap& map, uint32_t shared, int lane);
CopyPlan linear_plan(uint64_t global, uint32_t shared, uint32_t bytes, int lane);

}  // namespace l4k::emu
