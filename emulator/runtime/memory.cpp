// Allocation and copies. Device memory is host memory with guard zones; copies are synchronous.
#include <cstdlib>
#include <cstring>

#include "runtime/registry.h"

using namespace l4k::emu;

namespace {

// Everything that looks at memory first lets pending kernels finish.
cudaError_t settle() {
  Machine::get().synchronize();
  return status();
}

bool valid(const void* p, size_t n) {
  size_t hint = 0;
  return Machine::get().memory.find(reinterpret_cast<uint64_t>(p), n, &hint) != nullptr;
}

cudaError_t copy(void* dst, const void* src, size_t n, cudaMemcpyKind kind) {
  if (cudaError_t e = settle()) return e;
  if (!n) return cudaSuccess;
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((to_device && !valid(dst, n)) || (from_device && !valid(src, n)))
    return refuse(cudaErrorInvalidValue,
                  "copy of " + std::to_string(n) + " bytes leaves its device allocation: " +
                      Machine::get().memory.describe(
                          reinterpret_cast<uint64_t>(to_device && !valid(dst, n) ? dst : src)));
  std::memmove(dst, src, n);
  return cudaSuccess;
}

cudaError_t fill(void* p, int value, size_t n) {
  if (cudaError_t e = settle()) return e;
  if (!n) return cudaSuccess;
  if (!valid(p, n)) return refuse(cudaErrorInvalidValue, "cudaMemset leaves its device allocation");
  std::memset(p, value, n);
  return cudaSuccess;
}

cudaError_t allocate(void** p, size_t n) {
  if (cudaError_t e = status()) return e;
  if (!p) return refuse(cudaErrorInvalidValue, "cudaMalloc into a null pointer");
  *p = n ? Machine::get().memory.allocate(n) : nullptr;
  return n && !*p
             ? refuse(cudaErrorMemoryAllocation, "out of memory: " + std::to_string(n) + " bytes")
             : cudaSuccess;
}

cudaError_t release(void* p) {
  if (cudaError_t e = settle()) return e;
  if (p && !Machine::get().memory.release(p))
    return refuse(cudaErrorInvalidValue, "cudaFree of a pointer that cudaMalloc did not return");
  return cudaSuccess;
}

uint8_t* symbol(const void* s, size_t n, size_t offset, cudaError_t* error) {
  const Variable* v = Registry::get().variable(s);
  if (!v || offset > v->bytes || n > v->bytes - offset) {
    *error =
        v ? refuse(cudaErrorInvalidValue, "copy past the end of " + v->name) : Registry::get().last;
    return nullptr;
  }
  return reinterpret_cast<uint8_t*>(v->address) + offset;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** p, size_t n) { return allocate(p, n); }
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return allocate(p, n); }
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { return allocate(p, n); }
cudaError_t cudaMallocHost(void** p, size_t n) { return allocate(p, n); }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return allocate(p, n); }
cudaError_t cudaFree(void* p) { return release(p); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return release(p); }
cudaError_t cudaFreeHost(void* p) { return release(p); }
cudaError_t cudaHostGetDevicePointer(void** d, void* h, unsigned) {
  *d = h;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) {
  return copy(d, s, n, k);
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t) {
  return copy(d, s, n, k);
}
cudaError_t cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h,
                         cudaMemcpyKind k) {
  if (w > dp || w > sp)
    return refuse(cudaErrorInvalidPitchValue, "cudaMemcpy2D: rows wider than the pitch");
  for (size_t y = 0; y < h; ++y)
    if (cudaError_t e =
            copy(static_cast<char*>(d) + y * dp, static_cast<const char*>(s) + y * sp, w, k))
      return e;
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h,
                              cudaMemcpyKind k, cudaStream_t) {
  return cudaMemcpy2D(d, dp, s, sp, w, h, k);
}
cudaError_t cudaMemset(void* p, int v, size_t n) { return fill(p, v, n); }
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) { return fill(p, v, n); }
cudaError_t cudaMemcpyToSymbol(const void* s, const void* src, size_t n, size_t offset,
                               cudaMemcpyKind) {
  if (cudaError_t e = settle()) return e;
  cudaError_t error = cudaSuccess;
  if (uint8_t* p = symbol(s, n, offset, &error)) std::memcpy(p, src, n);
  return error;
}
cudaError_t cudaMemcpyToSymbolAsync(const void* s, const void* src, size_t n, size_t offset,
                                    cudaMemcpyKind k, cudaStream_t) {
  return cudaMemcpyToSymbol(s, src, n, offset, k);
}
cudaError_t cudaMemcpyFromSymbol(void* dst, const void* s, size_t n, size_t offset,
                                 cudaMemcpyKind) {
  if (cudaError_t e = settle()) return e;
  cudaError_t error = cudaSuccess;
  if (uint8_t* p = symbol(s, n, offset, &error)) std::memcpy(dst, p, n);
  return error;
}
cudaError_t cudaGetSymbolAddress(void** p, const void* s) {
  const Variable* v = Registry::get().variable(s);
  if (!v) return Registry::get().last;
  *p = reinterpret_cast<void*>(v->address);
  return cudaSuccess;
}
cudaError_t cudaGetSymbolSize(size_t* n, const void* s) {
  const Variable* v = Registry::get().variable(s);
  if (!v) return Registry::get().last;
  *n = v->bytes;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = size_t{141} << 30;
  *free_bytes = *total - Machine::get().memory.bytes_in_use();
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  std::memset(a, 0, sizeof *a);
  bool device = valid(p, 1);
  a->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->devicePointer = device ? const_cast<void*>(p) : nullptr;
  a->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}

}  // extern "C"
