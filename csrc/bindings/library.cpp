// Entry points that take no tensor, called from Python through ctypes.
#include <utility>

#include "bindings/call.h"
#include "bindings/registry.h"
#include "host/launch.h"
#include "host/recent.h"
#include "tile/error.h"

#define L4K_EXPORT extern "C" __attribute__((visibility("default")))

// "op: argument" of an error that a kernel on any device has reported since the last call, "" if
// none. Call it after synchronising.
L4K_EXPORT const char* l4k_take_device_error() {
  uint32_t* words = l4k::error_words();
  for (int device = 0; words != nullptr && device < l4k::kMaxDevices; ++device)
    if (uint32_t code = std::exchange(words[device], 0)) return l4k::device_error_name(code);
  return "";
}

// Allows (1) or forbids (0) dependent launches from here on; returns what held before.
L4K_EXPORT int l4k_allow_dependent_launches(int allowed) {
  return l4k::dependent_launches().exchange(allowed != 0);
}

// How often a call asked something whose answer is not kept: a choice of configuration, a tensor map, a
// property of the device. Between two calls of a warm program it stands still.
L4K_EXPORT uint64_t l4k_new_questions() { return l4k::new_questions().load(); }

// One line per binding: "name(Tensor, int) -> Tensor".
L4K_EXPORT const char* l4k_signatures() { return l4k::signatures().c_str(); }

#ifdef L4K_EMULATED
// Opens (1) or closes (0) a chain of ops whose launches overlap; closing returns the report.
L4K_EXPORT const char* l4k_emulated_chain(int open) {
  l4k::emulated::state().chain = open != 0;
  return open ? "" : l4k::emulated::finish();
}
#endif
