// The driver API: memory, streams, events, graphs. Handles are the runtime's.
#include <cstring>

#include "runtime/driver.h"
#include "runtime/work.h"

using namespace l4k::emu;

namespace {

void* at(CUdeviceptr p) { return reinterpret_cast<void*>(p); }
void** into(CUdeviceptr* p) { return reinterpret_cast<void**>(p); }

// Fills `n` elements of the type of `value`.
template <typename T>
CUresult fill(CUdeviceptr p, T value, size_t n, CUstream stream) {
  Lock lock(runtime_mutex());
  FillWork work;
  work.params = {.dst = at(p),
                 .pitch = n * sizeof(T),
                 .value = value,
                 .elementSize = sizeof(T),
                 .width = n,
                 .height = 1};
  work.rows = 1;
  if (cudaError_t e = check(work)) return driver(e);
  return driver(submit(stream, work));
}

struct Side {
  CUmemorytype type;
  const void* host;
  CUdeviceptr device;
  size_t pitch, x, y;
  char* start() const {
    auto* base = type == CU_MEMORYTYPE_HOST ? static_cast<const char*>(host)
                                            : static_cast<const char*>(at(device));
    return const_cast<char*>(base) + y * pitch + x;
  }
};

CUresult copy_2d(const CUDA_MEMCPY2D* c, CUstream stream, bool wait) {
  if (c->srcMemoryType == CU_MEMORYTYPE_ARRAY || c->dstMemoryType == CU_MEMORYTYPE_ARRAY)
    return driver(
        refuse(cudaErrorNotSupported, "copies of CUDA arrays are not implemented by the emulator"));
  auto pitch = [&](size_t given) { return given ? given : c->WidthInBytes; };
  Side src{c->srcMemoryType, c->srcHost, c->srcDevice, pitch(c->srcPitch), c->srcXInBytes, c->srcY};
  Side dst{c->dstMemoryType, c->dstHost, c->dstDevice, pitch(c->dstPitch), c->dstXInBytes, c->dstY};
  auto call = wait ? cudaMemcpy2D(dst.start(), dst.pitch, src.start(), src.pitch, c->WidthInBytes,
                                  c->Height, cudaMemcpyDefault)
                   : cudaMemcpy2DAsync(dst.start(), dst.pitch, src.start(), src.pitch,
                                       c->WidthInBytes, c->Height, cudaMemcpyDefault, stream);
  return driver(call);
}

}  // namespace

extern "C" {

CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  return driver(cudaMemGetInfo(free_bytes, total));
}
CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t n) {
  return driver(n ? cudaMalloc(into(p), n)
                  : refuse(cudaErrorInvalidValue, "cuMemAlloc of 0 bytes"));
}
CUresult cuMemAllocPitch_v2(CUdeviceptr* p, size_t* pitch, size_t width, size_t height, unsigned) {
  return driver(cudaMallocPitch(into(p), pitch, width, height));
}
CUresult cuMemAllocManaged(CUdeviceptr* p, size_t n, unsigned flags) {
  return driver(cudaMallocManaged(into(p), n, flags));
}
CUresult cuMemAllocAsync(CUdeviceptr* p, size_t n, CUstream s) {
  return driver(cudaMallocAsync(into(p), n, s));
}
CUresult cuMemFree_v2(CUdeviceptr p) { return driver(cudaFree(at(p))); }
CUresult cuMemFreeAsync(CUdeviceptr p, CUstream s) { return driver(cudaFreeAsync(at(p), s)); }
CUresult cuMemAllocHost_v2(void** p, size_t n) { return driver(cudaMallocHost(p, n)); }
CUresult cuMemHostAlloc(void** p, size_t n, unsigned flags) {
  return driver(cudaHostAlloc(p, n, flags));
}
CUresult cuMemFreeHost(void* p) { return driver(cudaFreeHost(p)); }
CUresult cuMemHostRegister_v2(void* p, size_t n, unsigned flags) {
  return driver(cudaHostRegister(p, n, flags));
}
CUresult cuMemHostUnregister(void* p) { return driver(cudaHostUnregister(p)); }
CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* d, void* h, unsigned flags) {
  return driver(cudaHostGetDevicePointer(into(d), h, flags));
}
CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* n, CUdeviceptr p) {
  Lock lock(runtime_mutex());
  const Range* r = Machine::get().memory.find_live(p, 1);
  if (!r)
    return driver(refuse(cudaErrorInvalidValue, Machine::get().memory.describe(p))),
           CUDA_ERROR_NOT_FOUND;
  if (base) *base = r->begin;
  if (n) *n = r->bytes();
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* out, CUpointer_attribute a, CUdeviceptr p) {
  Lock lock(runtime_mutex());
  const Range* r = Machine::get().memory.find_live(p, 1);
  if (!r) return driver(refuse(cudaErrorInvalidValue, Machine::get().memory.describe(p)));
  bool host = r->owner == Owner::host || r->owner == Owner::host_registered;
  switch (a) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return *static_cast<unsigned*>(out) = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE,
             CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      return std::memcpy(out, &p, sizeof p), CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return std::memcpy(out, &r->begin, sizeof p), CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: {
      size_t n = r->bytes();
      return std::memcpy(out, &n, sizeof n), CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return *static_cast<bool*>(out) = r->owner == Owner::managed, CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return *static_cast<int*>(out) = 0, CUDA_SUCCESS;
    default:
      return driver(refuse(cudaErrorNotSupported, "pointer attribute " + std::to_string(int(a)) +
                                                      " is not implemented by the emulator"));
  }
}

CUresult cuMemcpy(CUdeviceptr d, CUdeviceptr s, size_t n) {
  return driver(cudaMemcpy(at(d), at(s), n, cudaMemcpyDefault));
}
CUresult cuMemcpyAsync(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream stream) {
  return driver(cudaMemcpyAsync(at(d), at(s), n, cudaMemcpyDefault, stream));
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr d, const void* s, size_t n) {
  return driver(cudaMemcpy(at(d), s, n, cudaMemcpyHostToDevice));
}
CUresult cuMemcpyDtoH_v2(void* d, CUdeviceptr s, size_t n) {
  return driver(cudaMemcpy(d, at(s), n, cudaMemcpyDeviceToHost));
}
CUresult cuMemcpyDtoD_v2(CUdeviceptr d, CUdeviceptr s, size_t n) {
  return driver(cudaMemcpy(at(d), at(s), n, cudaMemcpyDeviceToDevice));
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void* s, size_t n, CUstream stream) {
  return driver(cudaMemcpyAsync(at(d), s, n, cudaMemcpyHostToDevice, stream));
}
CUresult cuMemcpyDtoHAsync_v2(void* d, CUdeviceptr s, size_t n, CUstream stream) {
  return driver(cudaMemcpyAsync(d, at(s), n, cudaMemcpyDeviceToHost, stream));
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream stream) {
  return driver(cudaMemcpyAsync(at(d), at(s), n, cudaMemcpyDeviceToDevice, stream));
}
CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D* c) { return copy_2d(c, nullptr, true); }
CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* c) { return copy_2d(c, nullptr, true); }
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* c, CUstream s) { return copy_2d(c, s, false); }
CUresult cuMemsetD8_v2(CUdeviceptr p, unsigned char v, size_t n) { return fill(p, v, n, nullptr); }
CUresult cuMemsetD16_v2(CUdeviceptr p, unsigned short v, size_t n) {
  return fill(p, v, n, nullptr);
}
CUresult cuMemsetD32_v2(CUdeviceptr p, unsigned v, size_t n) { return fill(p, v, n, nullptr); }
CUresult cuMemsetD8Async(CUdeviceptr p, unsigned char v, size_t n, CUstream s) {
  return fill(p, v, n, s);
}
CUresult cuMemsetD16Async(CUdeviceptr p, unsigned short v, size_t n, CUstream s) {
  return fill(p, v, n, s);
}
CUresult cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, CUstream s) {
  return fill(p, v, n, s);
}

CUresult cuStreamCreate(CUstream* s, unsigned flags) {
  return driver(cudaStreamCreateWithFlags(s, flags));
}
CUresult cuStreamCreateWithPriority(CUstream* s, unsigned flags, int priority) {
  return driver(cudaStreamCreateWithPriority(s, flags, priority));
}
CUresult cuStreamDestroy_v2(CUstream s) { return driver(cudaStreamDestroy(s)); }
CUresult cuStreamSynchronize(CUstream s) { return driver(cudaStreamSynchronize(s)); }
CUresult cuStreamQuery(CUstream s) { return driver(cudaStreamQuery(s)); }
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags) {
  return driver(cudaStreamWaitEvent(s, e, flags));
}
CUresult cuStreamGetFlags(CUstream s, unsigned* flags) {
  return driver(cudaStreamGetFlags(s, flags));
}
CUresult cuStreamGetPriority(CUstream s, int* priority) {
  return driver(cudaStreamGetPriority(s, priority));
}
CUresult cuStreamGetCtx(CUstream, CUcontext* c) { return cuCtxGetCurrent(c); }
CUresult cuStreamAddCallback(CUstream s, CUstreamCallback f, void* data, unsigned flags) {
  return driver(cudaStreamAddCallback(s, reinterpret_cast<cudaStreamCallback_t>(f), data, flags));
}
CUresult cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode mode) {
  return driver(cudaStreamBeginCapture(s, static_cast<cudaStreamCaptureMode>(mode)));
}
CUresult cuStreamEndCapture(CUstream s, CUgraph* g) { return driver(cudaStreamEndCapture(s, g)); }
CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus* state) {
  return driver(cudaStreamIsCapturing(s, reinterpret_cast<cudaStreamCaptureStatus*>(state)));
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  return driver(
      cudaThreadExchangeStreamCaptureMode(reinterpret_cast<cudaStreamCaptureMode*>(mode)));
}
CUresult cuEventCreate(CUevent* e, unsigned flags) {
  return driver(cudaEventCreateWithFlags(e, flags));
}
CUresult cuEventDestroy_v2(CUevent e) { return driver(cudaEventDestroy(e)); }
CUresult cuEventRecord(CUevent e, CUstream s) { return driver(cudaEventRecord(e, s)); }
CUresult cuEventSynchronize(CUevent e) { return driver(cudaEventSynchronize(e)); }
CUresult cuEventQuery(CUevent e) { return driver(cudaEventQuery(e)); }
CUresult cuEventElapsedTime_v2(float* ms, CUevent a, CUevent b) {
  return driver(cudaEventElapsedTime(ms, a, b));
}
CUresult cuGraphCreate(CUgraph* g, unsigned flags) { return driver(cudaGraphCreate(g, flags)); }
CUresult cuGraphDestroy(CUgraph g) { return driver(cudaGraphDestroy(g)); }
CUresult cuGraphInstantiateWithFlags(CUgraphExec* e, CUgraph g, unsigned long long flags) {
  return driver(cudaGraphInstantiate(e, g, flags));
}
CUresult cuGraphLaunch(CUgraphExec e, CUstream s) { return driver(cudaGraphLaunch(e, s)); }
CUresult cuGraphUpload(CUgraphExec e, CUstream s) { return driver(cudaGraphUpload(e, s)); }
CUresult cuGraphExecDestroy(CUgraphExec e) { return driver(cudaGraphExecDestroy(e)); }

}  // extern "C"
