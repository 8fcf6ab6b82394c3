#include "host/launch.h"

#include <mutex>

#include "host/recent.h"

namespace l4k {

namespace {

struct SharedMemoryWish {
  const void* kernel;
  size_t bytes;
  Machine machine;

  uint64_t hash() const {
    return hash_of({reinterpret_cast<uintptr_t>(kernel), bytes, machine.hash()});
  }
  bool operator==(const SharedMemoryWish&) const = default;
};

cudaError_t raise_shared_memory(const void* kernel, size_t bytes) {
  static std::mutex raising;  // never lowered, or a wish that was granted once would fail later
  std::lock_guard lock(raising);
  cudaFuncAttributes now;
  const cudaError_t error = cudaFuncGetAttributes(&now, kernel);
  if (error != cudaSuccess || now.maxDynamicSharedSizeBytes >= static_cast<int>(bytes))
    return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

}  // namespace

std::atomic<bool>& dependent_launches() {
  static std::atomic<bool> allowed{!check_asks_for("serial")};
  return allowed;
}

cudaError_t allow_shared_memory(const void* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  struct Granted {};
  static thread_local Recent<SharedMemoryWish, Granted, 64> kept;
  cudaError_t error = cudaSuccess;
  kept.of({kernel, bytes, Machine::current()}, [&](Granted&) {
    error = raise_shared_memory(kernel, bytes);
    return error == cudaSuccess;
  });
  return error;
}

}  // namespace l4k
