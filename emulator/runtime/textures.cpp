// Textures, surfaces and the arrays behind them are not implemented: each call says so.
#include "runtime/registry.h"

using namespace l4k::emu;

namespace {

cudaError_t no_textures(const char* call) {
  return refuse(cudaErrorNotSupported,
                std::string(call) +
                    ": textures and surfaces are not implemented by the emulator; let the kernel "
                    "read its data through pointers");
}

}  // namespace

extern "C" {

cudaChannelFormatDesc cudaCreateChannelDesc(int x, int y, int z, int w,
                                            cudaChannelFormatKind format) {
  return {x, y, z, w, format};
}
cudaError_t cudaMallocArray(cudaArray_t*, const cudaChannelFormatDesc*, size_t, size_t, unsigned) {
  return no_textures("cudaMallocArray");
}
cudaError_t cudaMalloc3DArray(cudaArray_t*, const cudaChannelFormatDesc*, cudaExtent, unsigned) {
  return no_textures("cudaMalloc3DArray");
}
cudaError_t cudaFreeArray(cudaArray_t array) {
  return array ? no_textures("cudaFreeArray") : cudaSuccess;
}
cudaError_t cudaMemcpyToArray(cudaArray_t, size_t, size_t, const void*, size_t, cudaMemcpyKind) {
  return no_textures("cudaMemcpyToArray");
}
cudaError_t cudaMemcpy2DToArray(cudaArray_t, size_t, size_t, const void*, size_t, size_t, size_t,
                                cudaMemcpyKind) {
  return no_textures("cudaMemcpy2DToArray");
}
cudaError_t cudaMemcpy2DFromArray(void*, size_t, cudaArray_const_t, size_t, size_t, size_t, size_t,
                                  cudaMemcpyKind) {
  return no_textures("cudaMemcpy2DFromArray");
}
cudaError_t cudaCreateTextureObject(cudaTextureObject_t*, const cudaResourceDesc*,
                                    const cudaTextureDesc*, const cudaResourceViewDesc*) {
  return no_textures("cudaCreateTextureObject");
}
cudaError_t cudaDestroyTextureObject(cudaTextureObject_t object) {
  return object ? no_textures("cudaDestroyTextureObject") : cudaSuccess;
}
cudaError_t cudaCreateSurfaceObject(cudaSurfaceObject_t*, const cudaResourceDesc*) {
  return no_textures("cudaCreateSurfaceObject");
}
cudaError_t cudaDestroySurfaceObject(cudaSurfaceObject_t object) {
  return object ? no_textures("cudaDestroySurfaceObject") : cudaSuccess;
}

}  // extern "C"
