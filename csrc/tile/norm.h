// How a CTA holds a row that it normalises: in registers, every thread a few vectors of 16 bytes. One
// layout for all kernels that do so, hence one order of a row's sum. Compiles under g++.
#pragma once
#include "tile/base.h"

namespace l4k {

constexpr int kNormVectors = 2;       // per thread
constexpr int kNormMaxWidth = 16384;  // elements: 1,024 threads

L4K_HD constexpr int norm_threads(int row_vectors) {
  return round_up(ceil_div(row_vectors, kNormVectors), 32);
}

}  // namespace l4k
