// Entry points that take no tensor, called from Python through ctypes.
#include "host/device.h"

#include "tile/error.h"

// Name of the error that a kernel on the current device has reported since the last call ("" if
// none), "op: argument". Call it after synchronising.
extern "C" __attribute__((visibility("default"))) const char* l4k_take_device_error() {
  uint32_t* word = l4k::error_word();
  if (word == nullptr) return "";
  uint32_t code = *word;
  *word = 0;
  return l4k::device_error_name(code);
}
