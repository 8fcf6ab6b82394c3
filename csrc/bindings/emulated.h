// The emulated twin of a binding: CPU tensors are declared to the emulator for the time of the call,
// so that an access outside a tensor is caught, and the kernels have finished when the op returns.
// Inside a chain (l4k_emulated_chain) ops return at once instead, so that dependent launches overlap
// as they would in a stream; the caller keeps all tensors alive until the chain ends.
#pragma once
#include <l4k_emulator.h>

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace l4k::emulated {

struct State {
  bool chain = false;
  std::vector<std::pair<const void*, size_t>> ranges;
  std::vector<std::shared_ptr<void>> workspaces;  // a chain outlives the binding that made them
};

inline State& state() {
  static State state;
  return state;
}

inline void declare(const void* base, size_t bytes) {
  l4k_emu_register_range(base, bytes);
  state().ranges.emplace_back(base, bytes);
}

// Waits for the kernels; the emulator's report if one of them went wrong, else "".
inline const char* finish() {
  const bool failed = l4k_emu_synchronize() != 0;
  for (auto [base, bytes] : state().ranges) l4k_emu_unregister_range(base, bytes);
  state().ranges.clear();
  state().workspaces.clear();
  return failed ? l4k_emu_report() : "";
}

inline const char* finish_call() { return state().chain ? "" : finish(); }

}  // namespace l4k::emulated
