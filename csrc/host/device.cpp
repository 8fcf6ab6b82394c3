#include "host/device.h"

#include <cstdlib>
#include <cstring>

#include "host/recent.h"

#ifdef L4K_EMULATED
#include <l4k_emulator.h>
#endif

namespace l4k {

Machine Machine::current() {
#ifdef L4K_EMULATED
  return {current_device(), l4k_emu_epoch()};
#else
  return {current_device(), 0};
#endif
}

int sm_count() {
  static thread_local Recent<Machine, int, 1> kept;
  const Machine machine = Machine::current();
  const int* count = kept.of(machine, [&](int& sms) {
    return cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, machine.device) ==
           cudaSuccess;
  });
  return count == nullptr ? 0 : *count;
}

namespace {

bool lists(const char* words, std::string_view word) {
  std::string_view rest = words == nullptr ? "" : words;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    if (rest.substr(0, comma) == word) return true;
    rest = comma == rest.npos ? "" : rest.substr(comma + 1);
  }
  return false;
}

}  // namespace

bool check_asks_for(std::string_view word) { return lists(std::getenv("L4K_CHECK"), word); }
bool log_asks_for(std::string_view word) { return lists(std::getenv("L4K_LOG"), word); }

uint32_t* error_words() {
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

uint32_t* error_word() {
  uint32_t* words = error_words();
  return words == nullptr ? nullptr : words + current_device();
}

}  // namespace l4k
