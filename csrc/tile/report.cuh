// Device side of the sticky error word of tile/error.h.
#pragma once
#include "tile/error.h"

namespace l4k {

// `word` is null where L4K_CHECK=1 asks for a trap at the spot.
__device__ __forceinline__ void report_error(uint32_t* word, DeviceError code) {
  if (word == nullptr) __trap();
  *reinterpret_cast<volatile uint32_t*>(word) = static_cast<uint32_t>(code);
}

}  // namespace l4k
