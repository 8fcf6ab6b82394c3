// A call of an op on its way to a launch: named arguments, the checks that memory safety needs, results
// and workspaces, the stream.
//
// What an op's arguments mean and must be is stated once, in l4kernels/ops; Python asks for it again
// when a binding has refused. Here stands what keeps a kernel from an address that is not its own,
// since torch.ops reaches a binding without passing through Python. Where all is well no check
// allocates, formats or asks the driver.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <type_traits>

#include "host/device.h"

#ifdef L4K_EMULATED
#include "bindings/emulated.h"
#else
// Absent from a CPU-only torch, where the library must still load: hence weak.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace l4k {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// A tensor under the name that the op's caller knows it by. There is none of a temporary: its memory
// is somebody else's before the kernels are launched.
struct Argument {
  const char* name;
  const Tensor& tensor;
  Sizes sizes, strides;
  ScalarType dtype;

  Argument(const char* name, const Tensor& tensor)
      : name(name),
        tensor(tensor),
        sizes(tensor.sizes()),
        strides(tensor.strides()),
        dtype(tensor.scalar_type()) {}
  Argument(const char* name, const Tensor&& tensor) = delete;

  int64_t rank() const { return static_cast<int64_t>(sizes.size()); }
  bool empty() const { return tensor.numel() == 0; }
};

struct OptionalArgument {
  const char* name;
  const OptionalTensor& tensor;

  OptionalArgument(const char* name, const OptionalTensor& tensor) : name(name), tensor(tensor) {}
  OptionalArgument(const char* name, const OptionalTensor&& tensor) = delete;

  explicit operator bool() const { return tensor.has_value(); }
  Argument operator*() const { return {name, *tensor}; }
};

// A size that is asked for, or a letter where any will do.
struct Size {
  int64_t value = -1;
  const char* letter = nullptr;

  constexpr Size(int64_t value) : value(value) {}
  constexpr Size(const char* letter) : letter(letter) {}
};
using Shape = std::initializer_list<Size>;

inline bool fits(Sizes sizes, Shape shape) {
  if (sizes.size() != shape.size()) return false;
  const int64_t* size = sizes.begin();
  for (const Size& wanted : shape)
    if (*size++ != wanted.value && wanted.letter == nullptr) return false;
  return true;
}

// For messages: `[5120, 128] BFloat16`, `[T, 128]`.
inline std::ostream& operator<<(std::ostream& text, const Argument& t) {
  text << "[";
  for (int64_t i = 0; i < t.rank(); ++i) text << (i ? ", " : "") << t.sizes[i];
  return text << "] " << torch::headeronly::toString(t.dtype);
}

inline std::ostream& operator<<(std::ostream& text, const Tensor& t) {
  return text << Argument("", t);
}

inline std::ostream& operator<<(std::ostream& text, const Shape& shape) {
  text << "[";
  for (const Size* s = shape.begin(); s != shape.end(); ++s) {
    text << (s == shape.begin() ? "" : ", ");
    if (s->letter != nullptr) text << s->letter;
    else text << s->value;
  }
  return text << "]";
}

inline std::ostream& operator<<(std::ostream& text, std::initializer_list<ScalarType> dtypes) {
  for (const ScalarType* d = dtypes.begin(); d != dtypes.end(); ++d)
    text << (d == dtypes.begin() ? "" : " or ") << torch::headeronly::toString(*d);
  return text;
}

// The bytes from the first of a tensor to its last.
struct Extent {
  const char *first = nullptr, *end = nullptr;

  explicit Extent(const Argument& t) {
    if (t.empty()) return;
    int64_t elements = 1;
    for (int64_t i = 0; i < t.rank(); ++i) elements += (t.sizes[i] - 1) * t.strides[i];
    first = static_cast<const char*>(t.tensor.data_ptr());
    end = first + elements * static_cast<int64_t>(t.tensor.element_size());
  }

  bool overlaps(const Extent& other) const { return first < other.end && other.first < end; }
};

// The address of a result or a workspace.
template <typename T = void>
T* pointer(const Tensor& t) {
#ifdef L4K_EMULATED
  emulated::declare(t.data_ptr(), t.numel() * t.element_size());
#endif
  return static_cast<T*>(t.data_ptr());
}
template <typename T = void>
T* pointer(const Tensor&&) = delete;  // as of an Argument

class Call {
 public:
  // All tensors must lie on the device of `first`, which is current while the call lasts.
  Call(const char* op, const Argument& first) : op_(op), like_(first.tensor) {
#ifndef L4K_EMULATED
    require(like_.is_cuda(), "expected all tensors on one device, got ", first.name, " ", first,
            " on another");
    device_ = like_.get_device_index();
    if (device_ != current_device()) guard_.emplace(device_);
#endif
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

#ifdef L4K_EMULATED
  ~Call() { emulated::finish_call(); }  // one that was refused has declared some of its tensors
#endif

  template <typename... Parts>
  void require(bool condition, const Parts&... parts) const {
    if (!condition) [[unlikely]]
      fail(parts...);
  }

  template <typename... Parts>
  [[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) const {
    std::ostringstream text;
    text << "l4kernels." << op_ << ": ";
    (text << ... << parts);
    throw std::runtime_error(text.str());
  }

  void require_dtype(const Argument& t, std::initializer_list<ScalarType> allowed) const {
    for (ScalarType dtype : allowed)
      if (t.dtype == dtype) return;
    fail("expected ", t.name, " to be ", allowed, ", got ", t);
  }

  void require_shape(const Argument& t, const Shape& shape) const {
    require(fits(t.sizes, shape), "expected ", t.name, " to be ", shape, ", got ", t);
  }

  void require_contiguous(const Argument& t) const {
    require(t.tensor.is_contiguous(), "expected ", t.name, " to be contiguous, got ", t,
            "; call contiguous() first");
  }

  // Where the tensor's data lies, at a multiple of so many bytes if there is any.
  void* address(const Argument& t, uintptr_t alignment) const {
#ifdef L4K_EMULATED
    const bool here = t.tensor.is_cpu();
#else
    const bool here = t.tensor.is_cuda() && t.tensor.get_device_index() == device_;
#endif
    require(here, "expected all tensors on one device, got ", t.name, " ", t, " on another");
    void* data = t.tensor.data_ptr();
    require(reinterpret_cast<uintptr_t>(data) % alignment == 0 || t.empty(), "expected ", t.name,
            " to be ", alignment, "-byte aligned, got ", t, "; clone() it first");
#ifdef L4K_EMULATED
    const Extent extent(t);
    emulated::declare(extent.first, extent.end - extent.first);
#endif
    return data;
  }

  // An uninitialised, contiguous result; the emulator's reports call it by `name`.
  [[nodiscard]] Tensor empty(Sizes shape, ScalarType dtype, const char* name = "a result") const {
#ifdef L4K_EMULATED
    return emulated::empty(shape, dtype, name);
#else
    (void)name;
    return torch::stable::new_empty(like_, shape, dtype);
#endif
  }

  // Memory that only the kernels of this call see. The binding holds it in a variable until they are
  // launched; freed after that, it is theirs until they end, as the stream has it.
  [[nodiscard]] Tensor workspace(int64_t words) const {
    return empty({words}, ScalarType::Int, "a workspace");
  }

  template <typename Params>
  void launch(cudaError_t (*launcher)(const Params&, cudaStream_t), const Params& params) const {
#ifdef L4K_EMULATED
    emulated::end_lives();
#endif
    const cudaError_t error = launcher(params, stream());
    if (error != cudaSuccess) fail("launch failed: ", cudaGetErrorString(error), hint(error));
#ifdef L4K_EMULATED
    const char* report = emulated::finish_call();
    require(*report == '\0', "emulator report: ", report);
#endif
  }

 private:
#ifdef L4K_EMULATED
  static cudaStream_t stream() { return nullptr; }
#else
  cudaStream_t stream() const {
    void* stream = nullptr;
    require(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA support");
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }
#endif

  static const char* hint(cudaError_t error) {
    switch (error) {
      case cudaErrorNoKernelImageForDevice:
        return ". The kernels need a Hopper GPU (compute capability 9.0); elsewhere run the model "
               "under l4kernels.reference()";
      case cudaErrorInsufficientDriver:
        return ". The library is built with CUDA 13 and needs driver 580 or newer";
      default:
        return "";
    }
  }

  const char* op_;
  const Tensor& like_;
#ifndef L4K_EMULATED
  int32_t device_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
#endif
};

}  // namespace l4k
