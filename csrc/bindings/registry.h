// Registers the bindings with torch, and notes their signatures.
//
// The bindings compile twice: for the GPU (namespace l4kernels, CUDA tensors) and, with
// L4K_EMULATED, for the emulator (namespace l4kernels_emulated, CPU tensors).
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#ifdef L4K_EMULATED
#define L4K_TORCH_NAMESPACE l4kernels_emulated
#define L4K_DISPATCH_KEY CPU
#else
#define L4K_TORCH_NAMESPACE l4kernels
#define L4K_DISPATCH_KEY CUDA
#endif

// L4K_REGISTER(m) { l4k::bind<l4k::binding::silu_mul>(m, "silu_mul"); }
#define L4K_REGISTER_(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
#define L4K_REGISTER(m) L4K_REGISTER_(L4K_TORCH_NAMESPACE, L4K_DISPATCH_KEY, m)

namespace l4k {

// The stable ABI's boxing checks how many arguments an op has, not their types; so each binding
// writes its C++ signature in the schema's words, and a test compares the two.
template <typename T>
constexpr const char* kTypeName = nullptr;
template <>
constexpr const char* kTypeName<torch::stable::Tensor> = "Tensor";
template <>
constexpr const char* kTypeName<int64_t> = "int";
template <>
constexpr const char* kTypeName<double> = "float";
template <>
constexpr const char* kTypeName<bool> = "bool";
template <>
constexpr const char* kTypeName<std::string> = "str";
template <>
constexpr const char* kTypeName<torch::headeronly::ScalarType> = "ScalarType";

template <typename T>
struct TypeText {
  static_assert(kTypeName<T> != nullptr, "not a type of torch's schemas; int64_t and double are");
  static std::string text() { return kTypeName<T>; }
};
template <typename T>
struct TypeText<std::optional<T>> {
  static std::string text() { return TypeText<T>::text() + "?"; }
};
template <>
struct TypeText<void> {
  static std::string text() { return "()"; }
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

// One line per binding: "name(Tensor, int) -> Tensor".
inline std::string& signatures() {
  static std::string all;
  return all;
}

template <auto* function>
void bind(torch::stable::detail::StableLibrary& library, const char* name) {
  library.impl(name, TORCH_BOX(function));
  signatures() += name + signature(function) + "\n";
}

}  // namespace l4k
