// What the host knows of a device: SM count, the sticky error words, what the environment asks for.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <string_view>

namespace l4k {

constexpr int kMaxDevices = 64;

inline int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

// The machine whose answers are kept: the current device, and in the emulator, whose machine changes
// under one number, which of those that it has been.
struct Machine {
  int device;
  uint32_t epoch;

  static Machine current();
  uint64_t hash() const { return (uint64_t{epoch} << 32 | static_cast<uint32_t>(device)) << 8; }
  bool operator==(const Machine&) const = default;
};

int sm_count();

// What the environment asks to be checked, and to be printed: words, separated by commas.
bool check_asks_for(std::string_view word);  // L4K_CHECK
bool log_asks_for(std::string_view word);    // L4K_LOG

// A word of page-locked host memory per device. Kernels set it (tile/error.h), the host reads it
// after it has synchronised for its own reasons, so a check costs neither a copy nor a wait.
// With L4K_CHECK=1 there are no words and a kernel that would set its own traps instead.
uint32_t* error_words();
uint32_t* error_word();  // of the current device

}  // namespace l4k
