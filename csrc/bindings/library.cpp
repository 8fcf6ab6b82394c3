// Entry points that take no tensor, called from Python through ctypes.
#include "bindings/check.h"
#include "host/device.h"
#include "tile/error.h"

#define L4K_EXPORT extern "C" __attribute__((visibility("default")))

// "op: argument" of the error that a kernel on the current device has reported since the last call,
// "" if none. Call it after synchronising.
L4K_EXPORT const char* l4k_take_device_error() {
  uint32_t* word = l4k::error_word();
  if (word == nullptr) return "";
  uint32_t code = *word;
  *word = 0;
  return l4k::device_error_name(code);
}

// One line per binding: "name(Tensor, int) -> Tensor".
L4K_EXPORT const char* l4k_signatures() { return l4k::signatures().c_str(); }

#ifdef L4K_EMULATED
// Opens (1) or closes (0) a chain of ops whose launches overlap; closing returns the report.
L4K_EXPORT const char* l4k_emulated_chain(int open) {
  l4k::emulated::state().chain = open != 0;
  return open ? "" : l4k::emulated::finish();
}
#endif
