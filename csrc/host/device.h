// What the host knows of a device, asked once: SM count, and the sticky error word.
#pragma once
#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>

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
  if (count == 0) {
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    cache[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

// One word of page-locked host memory per device. Kernels set it (tile/error.h), the host reads it
// after it has synchronised for its own reasons, so a check costs neither a copy nor a wait.
// With L4K_CHECK=1 there is no word and a kernel that would set it traps instead.
inline uint32_t* error_word() {
  static std::array<uint32_t*, kMaxDevices> words{};
  static std::mutex mutex;
  static const bool trap = [] {
    const char* value = std::getenv("L4K_CHECK");
    return value != nullptr && value[0] == '1';
  }();
  if (trap) return nullptr;
  std::lock_guard lock(mutex);
  uint32_t*& word = words[current_device()];
  if (word == nullptr) {
    void* memory = nullptr;
    if (cudaHostAlloc(&memory, sizeof(uint32_t), cudaHostAllocMapped) == cudaSuccess) {
      word = static_cast<uint32_t*>(memory);
      *word = 0;
    }
  }
  return word;
}

}  // namespace l4k
