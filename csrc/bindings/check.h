// What a binding needs of torch: argument checks with messages that name the argument, pointers,
// the current stream. A binding does five things in order: check, allocate, fill, launch, return.
//
// The bindings compile twice: for the GPU (namespace l4kernels, CUDA tensors) and, with
// L4K_EMULATED, for the emulator (namespace l4kernels_emulated, CPU tensors).
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "host/device.h"

#ifdef L4K_EMULATED
#include "bindings/emulated.h"
#define L4K_TORCH_NAMESPACE l4kernels_emulated
#define L4K_DISPATCH_KEY CPU
#else
#define L4K_TORCH_NAMESPACE l4kernels
#define L4K_DISPATCH_KEY CUDA
// Absent from a CPU-only torch, where the library must still load: hence weak.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

// L4K_REGISTER(m) { L4K_IMPL(m, "silu_mul", silu_mul); }   with the function in l4k::binding
#define L4K_REGISTER_(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
#define L4K_REGISTER(m) L4K_REGISTER_(L4K_TORCH_NAMESPACE, L4K_DISPATCH_KEY, m)
#define L4K_IMPL(m, name, function)                   \
  (m).impl(name, TORCH_BOX(&l4k::binding::function)); \
  l4k::signatures() += name + l4k::signature(&l4k::binding::function) + "\n"

namespace l4k {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The stable ABI's boxing checks how many arguments an op has, not their types; so each binding
// writes its C++ signature in the schema's words, and a test compares the two.
template <typename T>
constexpr const char* kTypeName = nullptr;
template <>
constexpr const char* kTypeName<Tensor> = "Tensor";
template <>
constexpr const char* kTypeName<int64_t> = "int";
template <>
constexpr const char* kTypeName<double> = "float";
template <>
constexpr const char* kTypeName<bool> = "bool";
template <>
constexpr const char* kTypeName<std::string> = "str";
template <>
constexpr const char* kTypeName<ScalarType> = "ScalarType";

template <typename T>
struct TypeText {
  static_assert(kTypeName<T> != nullptr, "not a type of torch's schemas; int64_t and double are");
  static std::string text() { return kTypeName<T>; }
};
template <typename T>
struct TypeText<std::optional<T>> {
  static std::string text() { return TypeText<T>::text() + "?"; }
};
template <typename... T>
struct TypeText<std::tuple<T...>> {
  static std::string text() {
    std::string all;
    ((all += (all.empty() ? "" : ", ") + TypeText<T>::text()), ...);
    return "(" + all + ")";
  }
};

template <typename Result, typename... Arguments>
std::string signature(Result (*)(Arguments...)) {
  return TypeText<std::tuple<std::remove_cvref_t<Arguments>...>>::text() + " -> " +
         TypeText<Result>::text();
}

inline std::string& signatures() {
  static std::string all;
  return all;
}

inline std::string describe(const Tensor& t) {
  std::ostringstream text;
  text << "[";
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << "] " << torch::headeronly::toString(t.scalar_type());
  return text.str();
}

inline bool fits(const Tensor& t, std::initializer_list<int64_t> shape) {
  if (t.dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t i = 0;
  for (int64_t expected : shape)  // -1: any size
    if (t.size(i++) != expected && expected != -1) return false;
  return true;
}

#define L4K_REQUIRE(condition, ...) \
  STD_TORCH_CHECK(condition, "l4kernels.", __func__, ": ", __VA_ARGS__)
#define L4K_CHECK_DTYPE(t, dtype)                                                               \
  L4K_REQUIRE((t).scalar_type() == ScalarType::dtype, "expected " #t " to be " #dtype ", got ", \
              l4k::describe(t))
#define L4K_CHECK_SHAPE(t, ...)                                                              \
  L4K_REQUIRE(l4k::fits(t, {__VA_ARGS__}), "expected " #t " to be [" #__VA_ARGS__ "], got ", \
              l4k::describe(t))
#define L4K_CHECK_CONTIGUOUS(t)                                                                \
  L4K_REQUIRE((t).is_contiguous(), "expected " #t " to be contiguous, got ", l4k::describe(t), \
              "; call contiguous() first")
#define L4K_CHECK_ROWS(t) /* 16-byte vectors along rows: contiguous and aligned */      \
  L4K_REQUIRE(l4k::rows_aligned(t),                                                     \
              "expected the rows of " #t " to be contiguous and 16-byte aligned, got ", \
              l4k::describe(t), "; call contiguous() first")
#define L4K_CHECK_MULTIPLE(value, divisor) \
  L4K_REQUIRE((value) % (divisor) == 0,    \
              "expected " #value " to be a multiple of " #divisor ", got ", value)
#ifdef L4K_EMULATED
#define L4K_BEGIN_EMULATED() l4k::emulated::end_lives()
#define L4K_FINISH_EMULATED()                                   \
  do {                                                          \
    std::string report_ = l4k::emulated::finish_call();         \
    L4K_REQUIRE(report_.empty(), "emulator report: ", report_); \
  } while (false)
#else
#define L4K_BEGIN_EMULATED()
#define L4K_FINISH_EMULATED()
#endif
#define L4K_LAUNCH(call)                                                              \
  do {                                                                                \
    L4K_BEGIN_EMULATED();                                                             \
    cudaError_t error_ = (call);                                                      \
    L4K_REQUIRE(error_ == cudaSuccess, "launch failed: ", cudaGetErrorString(error_), \
                l4k::launch_hint(error_));                                            \
    L4K_FINISH_EMULATED();                                                            \
  } while (false)

inline const char* launch_hint(cudaError_t error) {
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

// Address of a tensor's data, which must lie where the kernel runs. Under the emulator this also
// declares the tensor's extent.
template <typename T = void>
T* pointer(const Tensor& t) {
#ifdef L4K_EMULATED
  const bool here = t.is_cpu();
#else
  const bool here = t.is_cuda() && t.get_device_index() == current_device();
#endif
  STD_TORCH_CHECK(here, "l4kernels: expected all tensors on one device, got ", describe(t),
                  " on another");
#ifdef L4K_EMULATED
  int64_t extent = t.numel() == 0 ? 0 : 1;
  for (int64_t i = 0; i < t.dim() && extent; ++i) extent += (t.size(i) - 1) * t.stride(i);
  emulated::declare(t.data_ptr(), extent * t.element_size());
#endif
  return static_cast<T*>(t.data_ptr());
}

// Of a temporary there is none: its memory is somebody else's before the kernels are launched.
template <typename T = void>
T* pointer(const Tensor&&) = delete;

inline bool rows_aligned(const Tensor& t) {
  const int64_t bytes = t.element_size();
  if (t.numel() == 0) return true;
  if (reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 || t.stride(t.dim() - 1) != 1) return false;
  for (int64_t i = 0; i + 1 < t.dim(); ++i)
    if (t.size(i) > 1 && t.stride(i) * bytes % 16) return false;
  return true;
}

// Makes a tensor's device current for the binding's duration and gives the stream to launch on.
class Device {
 public:
#ifdef L4K_EMULATED
  explicit Device(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
  explicit Device(const Tensor& t) : index_(t.get_device_index()), guard_(index_) {}
  cudaStream_t stream() const {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "l4kernels: this torch has no CUDA support");
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// `name` is for the emulator's reports.
inline Tensor empty_like(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype,
                         const char* name = "a result") {
#ifdef L4K_EMULATED
  std::vector<int64_t> strides(shape.size());
  int64_t count = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = count;
    count *= shape[i] > 0 ? shape[i] : 1;
  }
  for (int64_t size : shape) count = size > 0 ? count : 0;
  const size_t bytes = count * torch::stable::new_empty(like, {0}, dtype).element_size();
  void* memory = emulated::allocate(bytes);
  STD_TORCH_CHECK(memory != nullptr, "l4kernels: out of memory: ", bytes, " bytes");
  return torch::stable::from_blob(
      memory, shape, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
      [bytes, name](void* freed) { emulated::release({freed, bytes, name}); });
#else
  (void)name;
  return torch::stable::new_empty(like, shape, dtype);
#endif
}

inline Tensor empty_like(const Tensor& like, std::vector<int64_t> shape) {
  return empty_like(like, std::move(shape), like.scalar_type());
}

}  // namespace l4k
