// What the CUTLASS programs share: operands of small integers, and running an adapter.
#pragma once
#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "../kernels/host.h"

inline void check(cutlass::Status status, const char* what) {
  if (status == cutlass::Status::kSuccess) return;
  std::printf("ERROR %s: %s\n", what, cutlassGetStatusString(status));
  std::exit(3);
}

template <typename T>
std::vector<T> convert(const std::vector<float>& x) {
  std::vector<T> v;
  for (float value : x) v.push_back(T(value));
  return v;
}
template <typename T>
std::vector<float> to_float(const std::vector<T>& x) {
  std::vector<float> v;
  for (T value : x) v.push_back(static_cast<float>(value));
  return v;
}

template <typename Gemm>
void run(const typename Gemm::Arguments& arguments) {
  Gemm gemm;
  CHECK(Gemm::can_implement(arguments));
  Buffer<uint8_t> workspace(Gemm::get_workspace_size(arguments) + 16);
  CHECK(gemm.initialize(arguments, workspace.data));
  CHECK(gemm.run());
  CHECK(cudaDeviceSynchronize());
}

// Eight SMs in every program, so that schedules do not depend on the machine.
inline cutlass::KernelHardwareInfo hardware() {
  cutlass::KernelHardwareInfo info;
  info.device_id = 0;
  info.sm_count = 8;
  return info;
}
template <typename Stride>
Stride packed(int rows, int columns) {
  return cutlass::make_cute_packed_stride(Stride{}, cute::make_shape(rows, columns, 1));
}
