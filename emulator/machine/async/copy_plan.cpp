#include "machine/async/copy_plan.h"

namespace l4k::emu {

using u32 = uint32_t;
using u64 = uint64_t;

TensorMap tensor_map(Warp& w, u64 address, int lane) {
  check_aligned(address, 64, lane);
  global_pointer(w, lane, address, sizeof(TensorMap), false);
  TensorMap map;
  std::string why = read_tensor_map(reinterpret_cast<const void*>(address), &map);
  if (!why.empty()) fault_at("tensor-map", why, lane, address);
  return map;
}

CopyPlan tensor_plan(Warp& w, const Inst& in, const TensorMap& map, u32 shared, int lane) {
  int32_t coords[5] = {};
  if (in.list.size() != map.rank)
    fault("tensor-map",
          "the instruction has " + std::to_string(in.list.size()) + " coordinates, the map " +
              std::to_string(map.rank) + " dimensions",
          lane);
  for (size_t k = 0; k < in.list.size(); ++k) coords[k] = w.reg<int32_t>(in.list[k])[lane];
  CopyPlan p;
  p.fill = oob_fill_bits(map);
  p.fill_bytes = map.element_bytes();
  for_each_run(map, coords, shared, [&](const BoxRun& r) {
    p.bytes += r.bytes;
    if (!p.runs.empty()) {
      CopyRun& last = p.runs.back();
      if (last.in_bounds == r.in_bounds && last.shared + last.bytes == r.shared &&
          (!r.in_bounds || last.global + last.bytes == r.global)) {
        last.bytes += r.bytes;
        return;
      }
    }
    p.runs.push_back({r.global, r.shared, r.bytes, r.in_bounds});
  });
  u64 low, high;
  if (box_global_range(map, coords, &low, &high)) global_pointer(w, lane, low, high - low, false);
  return p;
}

CopyPlan linear_plan(u64 global, u32 shared, u32 bytes, int lane) {
  if (!bytes || bytes % 16)
    fault("misaligned",
          "a bulk copy of " + std::to_string(bytes) + " bytes: a multiple of 16 is needed", lane);
  check_aligned(shared, 16, lane);
  check_aligned(global, 16, lane);
  CopyPlan p;
  p.bytes = bytes;
  p.runs.push_back({global, shared, bytes, true});
  return p;
}

}  // namespace l4k::emu
