// What the host knows of a device, asked once: SM count, and the sticky error words.
#pragma once
#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace l4k {

constexpr int kMaxDevices = 64;

inline int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

inline int sm_count() {
  static std::array<std::atomic<int>, kMaxDevices> cache{};
  int device = current_device();
  int count = cache[device].load(std::memory_order_relaxed);
#ifdef L4K_EMULATED
  count = 0;  // the emulated machine may have changed
#endif
  if (count == 0) {
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    cache[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

// A word of page-locked host memory per device. Kernels set it (tile/error.h), the host reads it
// after it has synchronised for its own reasons, so a check costs neither a copy nor a wait.
// With L4K_CHECK=1 there are no words and a kernel that would set its own traps instead.
inline uint32_t* error_words() {
  static uint32_t* const words = [] {
    const char* trap = std::getenv("L4K_CHECK");
    void* memory = nullptr;
    if (trap != nullptr && trap[0] == '1') return static_cast<uint32_t*>(memory);
    // The first op may be part of a graph capture, which by default forbids allocations.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (cudaHostAlloc(&memory, kMaxDevices * sizeof(uint32_t),
                      cudaHostAllocPortable | cudaHostAllocMapped) == cudaSuccess)
      std::memset(memory, 0, kMaxDevices * sizeof(uint32_t));
    cudaThreadExchangeStreamCaptureMode(&mode);
    return static_cast<uint32_t*>(memory);
  }();
  return words;
}

inline uint32_t* error_word() {
  uint32_t* words = error_words();
  return words == nullptr ? nullptr : words + current_device();
}

}  // namespace l4k
