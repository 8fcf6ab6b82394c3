// CUtensorMap: what TMA needs to know of a tensor. The driver's encoder is looked up at run time,
// so that the library links and loads on machines without a driver.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

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
};

inline cudaError_t make_tensor_map(const TensorMapSpec& spec, CUtensorMap* map) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static Encode encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault,
                                     &found);
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(symbol) : nullptr;
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  constexpr cuuint32_t kUnit[5] = {1, 1, 1, 1, 1};
  CUresult result =
      encode(map, spec.type, spec.rank, const_cast<void*>(spec.base), spec.shape, spec.strides,
             spec.box, kUnit, CU_TENSOR_MAP_INTERLEAVE_NONE, spec.swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace l4k
