// The emulated twin of a binding: CPU tensors are declared to the emulator for the time of the call,
// so that an access outside a tensor is caught, and the kernels have finished when the op returns.
// Inside a chain (l4k_emulated_chain) ops return at once instead, so that dependent launches overlap
// as they would in a stream.
//
// What a binding allocates is ours, so that we hear of its end. As on a GPU, where memory returns to
// the stream's pool, kernels that were launched before still find it; one launched afterwards is
// reported. Tensors from elsewhere the caller keeps alive until the chain ends.
#pragma once
#include <cuda_runtime.h>
#include <l4k_emulator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

namespace l4k::emulated {

struct Freed {
  void* memory;
  size_t bytes;
  const char* name;
};

struct State {
  bool chain = false;
  std::vector<std::pair<const void*, size_t>> ranges;
  std::mutex mutex;          // any thread may drop a tensor, also while kernels run
  std::vector<Freed> freed;  // and not yet given back
};

inline State& state() {
  static State& state = *new State;  // tensors may outlive static variables
  return state;
}

inline void declare(const void* base, size_t bytes) {
  l4k_emu_register_range(base, bytes);
  state().ranges.emplace_back(base, bytes);
}

constexpr size_t kPoisoned = size_t{64} << 20;

// All ones, NaN in every type of float: what a kernel counts on or leaves out does not pass.
inline void* allocate(size_t bytes) {
  constexpr size_t kAlignment = 512;  // torch's on a GPU
  void* memory = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  if (memory != nullptr) std::memset(memory, 0xff, std::min(bytes, kPoisoned));
  return memory;
}

inline void release(const Freed& freed) {
  std::lock_guard lock(state().mutex);
  state().freed.push_back(freed);
}

// Launches from here on must not touch what has been freed so far.
inline void end_lives() {
  std::lock_guard lock(state().mutex);
  for (const Freed& f : state().freed) l4k_emu_end_range(f.memory, f.bytes, f.name);
}

// Waits for the kernels; the emulator's report if one of them went wrong, else "".
inline const char* finish() {
  const bool failed = l4k_emu_synchronize() != 0;
  for (auto [base, bytes] : state().ranges) l4k_emu_unregister_range(base, bytes);
  state().ranges.clear();
  std::lock_guard lock(state().mutex);
  for (const Freed& f : state().freed) std::free(f.memory);
  state().freed.clear();
  return failed ? l4k_emu_report() : "";
}

inline const char* finish_call() { return state().chain ? "" : finish(); }

}  // namespace l4k::emulated

namespace l4k {

// Stands in for the GPU of a call, as cuda.h has it.
class Device {
 public:
  explicit Device(const torch::stable::Tensor&) {}
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { emulated::finish_call(); }  // a call that was refused has declared some tensors

  static bool holds(const torch::stable::Tensor& t) { return t.is_cpu(); }

  template <typename GetExtent>
  static void declare(const GetExtent& get_extent) {
    const auto extent = get_extent();
    emulated::declare(extent.first, extent.end - extent.first);
  }

  // Reports call it by `name`.
  static torch::stable::Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef shape,
                                     torch::headeronly::IntHeaderOnlyArrayRef strides,
                                     torch::headeronly::ScalarType dtype, const char* name) {
    size_t bytes = aoti_torch_dtype_element_size(
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)));
    for (int64_t size : shape) bytes *= size;
    void* memory = emulated::allocate(bytes);
    STD_TORCH_CHECK(memory != nullptr, "l4kernels: out of memory: ", bytes, " bytes");
    return torch::stable::from_blob(
        memory, shape, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
        [bytes, name](void* freed) { emulated::release({freed, bytes, name}); });
  }

  static cudaStream_t stream() { return nullptr; }
  static void before_launch() { emulated::end_lives(); }
  static const char* after_launch() { return emulated::finish_call(); }
};

}  // namespace l4k
