// What the host knows of a device, asked once: SM count, and the sticky error words.
#pragma once
#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

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

// Whether a list of words, separated by commas, holds this one.
inline bool lists(const char* words, std::string_view word) {
  std::string_view rest = words == nullptr ? "" : words;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    if (rest.substr(0, comma) == word) return true;
    rest = comma == rest.npos ? "" : rest.substr(comma + 1);
  }
  return false;
}

// What the environment asks to be checked, and to be printed.
inline bool check_asks_for(std::string_view word) { return lists(std::getenv("L4K_CHECK"), word); }
inline bool log_asks_for(std::string_view word) { return lists(std::getenv("L4K_LOG"), word); }

// A word of page-locked host memory per device. Kernels set it (tile/error.h), the host reads it
// after it has synchronised for its own reasons, so a check costs neither a copy nor a wait.
// With L4K_CHECK=1 there are no words and a kernel that would set its own traps instead.
inline uint32_t* error_words() {
  static uint32_t* const words = [] {
    void* memory = nullptr;
    if (check_asks_for("1")) return static_cast<uint32_t*>(memory);
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
