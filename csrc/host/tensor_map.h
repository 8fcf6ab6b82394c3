// CUtensorMap: what TMA needs to know of a tensor.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "host/recent.h"

namespace l4k {

// A tensor of `rank` dimensions, innermost first. `strides` (bytes) starts at dimension 1: the
// innermost dimension is contiguous.
struct TensorMapSpec {
  CUtensorMapDataType type;
  int rank;
  const void* base;  // 16-byte aligned
  uint64_t shape[5];
  uint64_t strides[4];  // multiples of 16
  uint32_t box[5];      // <= 256 each; box[0] in bytes <= the swizzle span
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;

  uint64_t hash() const {
    return hash_of({reinterpret_cast<uintptr_t>(base), shape[0] ^ shape[2] << 32, shape[1],
                    strides[0] ^ uint64_t{box[1]} << 48});
  }
  bool operator==(const TensorMapSpec&) const = default;
};

// A map depends on its spec alone, not on what lies at its address: it may be kept for as long as
// one likes, and is.
cudaError_t make_tensor_map(const TensorMapSpec& spec, CUtensorMap* map);

}  // namespace l4k
