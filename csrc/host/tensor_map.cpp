#include "host/tensor_map.h"

namespace l4k {

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

// Looked up at run time, so that the library links and loads on machines without a driver.
Encode driver_encode() {
  static const Encode encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault,
                                     &found);
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(symbol) : nullptr;
  }();
  return encode;
}

cudaError_t encode_tensor_map(const TensorMapSpec& spec, CUtensorMap* map) {
  const Encode encode = driver_encode();
  if (encode == nullptr) return cudaErrorNotSupported;
  constexpr cuuint32_t kUnit[5] = {1, 1, 1, 1, 1};
  CUresult result =
      encode(map, spec.type, spec.rank, const_cast<void*>(spec.base), spec.shape, spec.strides,
             spec.box, kUnit, CU_TENSOR_MAP_INTERLEAVE_NONE, spec.swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// 256 KB a thread. A decode step of Scout asks for some 400 maps, always the same ones.
constexpr size_t kSets = 256;

}  // namespace

cudaError_t make_tensor_map(const TensorMapSpec& spec, CUtensorMap* map) {
  static thread_local Recent<TensorMapSpec, CUtensorMap, kSets> kept;
  cudaError_t error = cudaSuccess;
  const CUtensorMap* found = kept.of(spec, [&](CUtensorMap& made) {
    error = encode_tensor_map(spec, &made);
    return error == cudaSuccess;
  });
  if (found != nullptr) *map = *found;
  return error;
}

}  // namespace l4k
