// Copies and fills.
#include "runtime/work.h"

using namespace l4k::emu;

namespace {

// Host memory that is not page-locked: a copy there has ended when the call returns.
bool pageable(const void* p) {
  return !Machine::get().memory.find(reinterpret_cast<uint64_t>(p), 1);
}

cudaError_t copy_async(const CopyWork& work, cudaStream_t stream) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = status()) return e;
  if (cudaError_t e = check(work)) return e;
  StreamOperationPtr op;
  cudaError_t e = submit(stream, work, &op);
  if (e == cudaSuccess && op && pageable(work.dst.ptr)) Streams::get().host_waits(op->after);
  return e;
}

// The host waits, except for copies inside the device.
cudaError_t copy(const char* name, const CopyWork& work) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = status()) return e;
  if (cudaError_t e = check(work)) return e;
  if (work.kind == cudaMemcpyDeviceToDevice) {
    if (cudaError_t e = Streams::get().unsafe_call(name)) return e;
    return submit(nullptr, work);
  }
  return submit_and_wait(name, work);
}

CopyWork copy_2d(void* dst, size_t dst_pitch, const void* src, size_t src_pitch, size_t width,
                 size_t height, cudaMemcpyKind kind) {
  CopyWork w;
  w.dst = {dst, dst_pitch, width, height};
  w.src = {const_cast<void*>(src), src_pitch, width, height};
  w.extent = {width, height, 1};
  w.kind = kind;
  return w;
}

cudaError_t copy_3d(const cudaMemcpy3DParms* p, CopyWork* work) {
  if (!p) return refuse(cudaErrorInvalidValue, "cudaMemcpy3D without parameters");
  if (p->srcArray || p->dstArray)
    return refuse(cudaErrorNotSupported,
                  "copies of CUDA arrays are not implemented by the emulator");
  *work = {p->dstPtr, p->srcPtr, p->dstPos, p->srcPos, p->extent, p->kind};
  return cudaSuccess;
}

cudaError_t fill(const FillWork& work, cudaStream_t stream, const char* synchronous) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = status()) return e;
  if (synchronous)
    if (cudaError_t e = Streams::get().unsafe_call(synchronous)) return e;
  if (cudaError_t e = check(work)) return e;
  return submit(stream, work);
}

FillWork fill_2d(void* p, size_t pitch, int value, size_t width, size_t height) {
  return {{.dst = p,
           .pitch = pitch,
           .value = static_cast<unsigned>(value & 0xff),
           .elementSize = 1,
           .width = width,
           .height = height},
          1,
          height};
}

FillWork fill_3d(const cudaPitchedPtr& p, int value, const cudaExtent& e) {
  FillWork work = fill_2d(p.ptr, p.pitch, value, e.width, e.height);
  work.depth = e.depth;
  work.rows = p.ysize;
  return work;
}

// The address inside a device variable, or refused.
cudaError_t inside(const void* symbol, size_t n, size_t offset, char** p) {
  const Variable* v = Registry::get().variable(symbol);
  if (!v) return Registry::get().last;
  if (offset > v->bytes || n > v->bytes - offset)
    return refuse(cudaErrorInvalidValue, "copy past the end of " + v->name);
  *p = reinterpret_cast<char*>(v->address) + offset;
  return cudaSuccess;
}

cudaError_t one_device(int a, int b) {
  return a || b ? refuse(cudaErrorInvalidDevice, "the emulator has device 0 only") : cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) {
  return copy("cudaMemcpy", linear_copy(d, s, n, k));
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k,
                            cudaStream_t stream) {
  return copy_async(linear_copy(d, s, n, k), stream);
}
cudaError_t cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h,
                         cudaMemcpyKind k) {
  return copy("cudaMemcpy2D", copy_2d(d, dp, s, sp, w, h, k));
}
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h,
                              cudaMemcpyKind k, cudaStream_t stream) {
  return copy_async(copy_2d(d, dp, s, sp, w, h, k), stream);
}
cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms* p) {
  CopyWork work;
  cudaError_t e = copy_3d(p, &work);
  return e ? e : copy("cudaMemcpy3D", work);
}
cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms* p, cudaStream_t stream) {
  CopyWork work;
  cudaError_t e = copy_3d(p, &work);
  return e ? e : copy_async(work, stream);
}
cudaError_t cudaMemcpyPeer(void* d, int to, const void* s, int from, size_t n) {
  cudaError_t e = one_device(to, from);
  return e ? e : cudaMemcpy(d, s, n, cudaMemcpyDeviceToDevice);
}
cudaError_t cudaMemcpyPeerAsync(void* d, int to, const void* s, int from, size_t n,
                                cudaStream_t stream) {
  cudaError_t e = one_device(to, from);
  return e ? e : cudaMemcpyAsync(d, s, n, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemset(void* p, int v, size_t n) {
  return fill(fill_2d(p, n, v, n, 1), nullptr, "cudaMemset");
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t s) {
  return fill(fill_2d(p, n, v, n, 1), s, nullptr);
}
cudaError_t cudaMemset2D(void* p, size_t pitch, int v, size_t w, size_t h) {
  return fill(fill_2d(p, pitch, v, w, h), nullptr, "cudaMemset2D");
}
cudaError_t cudaMemset2DAsync(void* p, size_t pitch, int v, size_t w, size_t h, cudaStream_t s) {
  return fill(fill_2d(p, pitch, v, w, h), s, nullptr);
}
cudaError_t cudaMemset3D(cudaPitchedPtr p, int v, cudaExtent e) {
  return fill(fill_3d(p, v, e), nullptr, "cudaMemset3D");
}
cudaError_t cudaMemset3DAsync(cudaPitchedPtr p, int v, cudaExtent e, cudaStream_t s) {
  return fill(fill_3d(p, v, e), s, nullptr);
}

cudaError_t cudaMemcpyToSymbol(const void* s, const void* src, size_t n, size_t offset,
                               cudaMemcpyKind kind) {
  char* p = nullptr;
  cudaError_t e = inside(s, n, offset, &p);
  return e ? e : copy("cudaMemcpyToSymbol", linear_copy(p, src, n, kind));
}
cudaError_t cudaMemcpyToSymbolAsync(const void* s, const void* src, size_t n, size_t offset,
                                    cudaMemcpyKind kind, cudaStream_t stream) {
  char* p = nullptr;
  cudaError_t e = inside(s, n, offset, &p);
  return e ? e : copy_async(linear_copy(p, src, n, kind), stream);
}
cudaError_t cudaMemcpyFromSymbol(void* dst, const void* s, size_t n, size_t offset,
                                 cudaMemcpyKind kind) {
  char* p = nullptr;
  cudaError_t e = inside(s, n, offset, &p);
  return e ? e : copy("cudaMemcpyFromSymbol", linear_copy(dst, p, n, kind));
}
cudaError_t cudaMemcpyFromSymbolAsync(void* dst, const void* s, size_t n, size_t offset,
                                      cudaMemcpyKind kind, cudaStream_t stream) {
  char* p = nullptr;
  cudaError_t e = inside(s, n, offset, &p);
  return e ? e : copy_async(linear_copy(dst, p, n, kind), stream);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  Lock lock(runtime_mutex());
  if (!function) return refuse(cudaErrorInvalidValue, "cudaLaunchHostFunc without a function");
  return submit(stream, HostWork{function, data});
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data,
                                  unsigned flags) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(stream);
  if (!s) return Registry::get().last;
  if (!callback || flags)
    return refuse(cudaErrorInvalidValue, "cudaStreamAddCallback: needs a function, and flags 0");
  if (s->capture)
    return Streams::get().invalidate(
        *s->capture, cudaErrorStreamCaptureUnsupported,
        "cudaStreamAddCallback cannot be captured; cudaLaunchHostFunc can");
  cudaError_t e = settle();
  InHostFunction scope;
  callback(stream, e, data);
  return status();
}

}  // extern "C"
