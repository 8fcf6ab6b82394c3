// The tile products of wgmma and mma.sync: any number of rows that is a multiple of four up to
// 64, n a multiple of 8 up to 256, 16 or 32 bytes of K.
#pragma once

#include <cstdint>

#include "tensor/mma.h"

namespace l4k::emu {

void multiply_float(MmaType ta, MmaType tb, int rows, int n, int k_bytes, const uint8_t* a,
                    const uint8_t* b, float* acc, bool negate, Fp8Accumulation fp8);
void multiply_int(MmaType ta, MmaType tb, int rows, int n, int k_bytes, const uint8_t* a,
                  const uint8_t* b, int32_t* acc, bool satfinite);

}  // namespace l4k::emu
