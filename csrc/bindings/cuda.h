// The GPU of a call. Its twin is in emulated.h.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "host/device.h"

// Absent from a CPU-only torch, where the library must still load: hence weak.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace l4k {

// The device of a tensor, current while the object lives.
class Device {
 public:
  explicit Device(const torch::stable::Tensor& t)
      : index_(t.is_cuda() ? t.get_device_index() : kNone) {
    if (index_ != kNone && index_ != current_device()) guard_.emplace(index_);
  }

  bool holds(const torch::stable::Tensor& t) const {
    return t.is_cuda() && t.get_device_index() == index_;
  }

  template <typename GetExtent>
  static void declare(const GetExtent&) {}  // only the emulator knows how far a tensor reaches

  torch::stable::Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef shape,
                              torch::headeronly::IntHeaderOnlyArrayRef strides,
                              torch::headeronly::ScalarType dtype, const char*) const {
    AtenTensorHandle made = nullptr;  // torch::stable::new_empty costs microseconds more
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
        aoti_torch_device_type_cuda(), index_, &made));
    return torch::stable::Tensor(made);
  }

  cudaStream_t stream() const {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "l4kernels: this torch has no CUDA support");
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

  static void before_launch() {}
  static const char* after_launch() { return ""; }

 private:
  static constexpr int32_t kNone = -1;

  int32_t index_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

}  // namespace l4k
