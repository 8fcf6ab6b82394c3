// A call of an op: its arguments under their names, the checks, results and workspaces, the launch.
//
// What the arguments of an op must be is stated in l4kernels/ops. A binding checks what its kernels
// rely on to stay within memory, since torch.ops reaches it without passing through Python; when it
// refuses, Python's check runs and words the error as on a CPU. A check that passes allocates and
// formats nothing.
#pragma once
#include <cuda_runtime.h>
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
#include "bindings/cuda.h"
#endif

namespace l4k {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// A tensor under the name that the op's caller knows. It is never a temporary, whose memory may
// belong to another tensor before the kernels are launched.
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
  int64_t element_size() const { return static_cast<int64_t>(tensor.element_size()); }
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
    end = first + elements * t.element_size();
  }

  bool overlaps(const Extent& other) const { return first < other.end && other.first < end; }
};

// The address of a result or a workspace, which must not be a temporary either.
template <typename T = void>
T* pointer(const Tensor& t) {
  Device::declare([&] { return Extent({"", t}); });
  return static_cast<T*>(t.data_ptr());
}
template <typename T = void>
T* pointer(const Tensor&&) = delete;

class Call {
 public:
  // All tensors must lie on the device of `first`.
  Call(const char* op, const Argument& first) : op_(op), device_(first.tensor) {
    require_here(first);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

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

  // The address of the tensor's data, if any a multiple of `alignment` bytes.
  void* address(const Argument& t, uintptr_t alignment) const {
    require_here(t);
    void* data = t.tensor.data_ptr();
    require(reinterpret_cast<uintptr_t>(data) % alignment == 0 || t.empty(), "expected ", t.name,
            " to be ", alignment, "-byte aligned, got ", t, "; clone() it first");
    Device::declare([&] { return Extent(t); });
    return data;
  }

  // An uninitialised, contiguous result; the emulator's reports call it by `name`.
  [[nodiscard]] Tensor empty(Sizes shape, ScalarType dtype, const char* name = "a result") const {
    constexpr size_t kMaxRank = 64;  // of most ops of torch
    require(shape.size() <= kMaxRank, "expected at most ", kMaxRank, " dimensions, got ",
            shape.size());
    int64_t strides[kMaxRank], count = 1;
    for (size_t i = shape.size(); i-- > 0; count *= shape[i] > 0 ? shape[i] : 1) strides[i] = count;
    return device_.empty(shape, {strides, shape.size()}, dtype, name);
  }

  // Memory that only the kernels of this call see. The binding holds it in a variable until they
  // are launched. Freed after that, it stays theirs until they end: it is reused in the stream's order.
  [[nodiscard]] Tensor workspace(int64_t words) const {
    return empty({words}, ScalarType::Int, "a workspace");
  }

  template <typename Params>
  void launch(cudaError_t (*launcher)(const Params&, cudaStream_t), const Params& params) const {
    Device::before_launch();
    const cudaError_t error = launcher(params, device_.stream());
    if (error != cudaSuccess) fail("launch failed: ", cudaGetErrorString(error), hint(error));
    const char* report = Device::after_launch();
    require(*report == '\0', "emulator report: ", report);
  }

 private:
  void require_here(const Argument& t) const {
    require(device_.holds(t.tensor), "expected all tensors on one device, got ", t.name, " ", t,
            " on another");
  }

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
  Device device_;
};

}  // namespace l4k
