// Devices, functions, occupancy, streams, events, errors.
#include <cuda.h>

#include <chrono>
#include <cstring>

#include "runtime/registry.h"
#include "tensor/tensor_map.h"

using namespace l4k::emu;

namespace {

int attribute(cudaDeviceAttr a, bool* known) {
  int sms = static_cast<int>(Machine::get().settings.sms);
  switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 * 1024;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return 227 * 1024;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 228 * 1024;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return 1024;
    case cudaDevAttrTotalConstantMemory:
      return 65536;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrClockRate:
      return 1980000;
    case cudaDevAttrMemoryClockRate:
      return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth:
      return 6144;
    case cudaDevAttrMultiProcessorCount:
      return sms;
    case cudaDevAttrL2CacheSize:
      return 50 * 1024 * 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return 32;
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrComputeCapabilityMinor:
      return 0;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrStreamPrioritiesSupported:
      return 1;
    case cudaDevAttrTextureAlignment:
      return 512;
    default:
      *known = false;
      return 0;
  }
}

uint32_t static_shared(const Program& p) { return p.static_shared_end - 1024; }

struct Event {
  std::chrono::steady_clock::time_point time;
};

CUresult encode_tiled_entry(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                            void* address, const cuuint64_t* dims, const cuuint64_t* strides,
                            const cuuint32_t* box, const cuuint32_t* element_strides,
                            CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                            CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  EncodeResult r = encode_tiled(map, type, rank, address, dims, strides, box, element_strides,
                                interleave, swizzle, promotion, fill);
  if (r.code != EncodeCode::ok) Registry::get().refusal = "cuTensorMapEncodeTiled: " + r.reason;
  return static_cast<CUresult>(r.code);
}
CUresult error_string(CUresult e, const char** s) {
  *s = e == CUDA_SUCCESS               ? "no error"
       : e == CUDA_ERROR_INVALID_VALUE ? "invalid argument"
                                       : "error";
  return CUDA_SUCCESS;
}
CUresult error_name(CUresult e, const char** s) {
  *s = e == CUDA_SUCCESS               ? "CUDA_SUCCESS"
       : e == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
                                       : "CUDA_ERROR";
  return CUDA_SUCCESS;
}

cudaError_t entry_point(const char* name, void** f, cudaDriverEntryPointQueryResult* result) {
  std::string n = name;
  *f = n == "cuTensorMapEncodeTiled" ? reinterpret_cast<void*>(encode_tiled_entry)
       : n == "cuGetErrorString"     ? reinterpret_cast<void*>(error_string)
       : n == "cuGetErrorName"       ? reinterpret_cast<void*>(error_name)
                                     : nullptr;
  if (result) *result = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  if (!*f)
    return refuse(cudaErrorNotSupported,
                  "driver entry point " + n + " is not implemented by the emulator");
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { return *d = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
  return d == 0 ? cudaSuccess : refuse(cudaErrorInvalidDevice, "the emulator has device 0 only");
}
cudaError_t cudaDriverGetVersion(int* v) { return *v = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { return *v = 13000, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  bool known = true;
  *v = attribute(a, &known);
  return known ? cudaSuccess
               : refuse(cudaErrorNotSupported,
                        "device attribute " + std::to_string(int(a)) + " is not implemented");
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "l4k emulator (sm_90a)");
  p->totalGlobalMem = size_t{141} << 30;
  p->sharedMemPerBlock = 48 * 1024, p->sharedMemPerBlockOptin = 227 * 1024;
  p->sharedMemPerMultiprocessor = 228 * 1024, p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536, p->major = 9, p->minor = 0;
  p->multiProcessorCount = static_cast<int>(Machine::get().settings.sms);
  p->l2CacheSize = 50 * 1024 * 1024, p->memoryBusWidth = 6144;
  p->cooperativeLaunch = p->unifiedAddressing = p->managedMemory = p->concurrentKernels = 1;
  p->textureAlignment = 512;
  return cudaSuccess;
}
cudaError_t cudaDeviceReset() {
  Machine::get().synchronize();
  Machine::get().reset();
  return cudaSuccess;
}
cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }

cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) {
  Kernel* k = Registry::get().find(f);
  if (!k) return Registry::get().last;
  switch (a) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize: {
      const Program* p = k->load();
      if (!p) return Registry::get().last;
      if (v < 0 || static_cast<uint32_t>(v) + static_shared(*p) > 227 * 1024)
        return refuse(cudaErrorInvalidValue, k->name + ": " + std::to_string(v) + " + " +
                                                 std::to_string(static_shared(*p)) +
                                                 " bytes of shared memory; 232448 fit");
      k->max_dynamic_shared = static_cast<uint32_t>(v);
      k->dynamic_set = true;
      return cudaSuccess;
    }
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      k->non_portable_cluster = v != 0;
      return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      return cudaSuccess;
    default:
      return refuse(cudaErrorInvalidValue,
                    "function attribute " + std::to_string(int(a)) + " is not implemented");
  }
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
  Kernel* k = Registry::get().find(f);
  const Program* p = k ? k->load() : nullptr;
  if (!p) return Registry::get().last;
  std::memset(a, 0, sizeof *a);
  uint32_t bound = p->ptx->max_threads[0] * p->ptx->max_threads[1] * p->ptx->max_threads[2];
  a->maxThreadsPerBlock = bound ? static_cast<int>(bound) : 1024;
  a->sharedSizeBytes = static_shared(*p);
  a->localSizeBytes = p->ptx->local_bytes;
  a->numRegs = static_cast<int>(registers_per_thread(*p, bound ? bound : 256));
  a->ptxVersion = a->binaryVersion = 90;
  a->maxDynamicSharedSizeBytes = static_cast<int>(k->max_dynamic_shared);
  return cudaSuccess;
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f,
                                                                   int threads, size_t shared,
                                                                   unsigned) {
  Kernel* k = Registry::get().find(f);
  const Program* p = k ? k->load() : nullptr;
  if (!p) return Registry::get().last;
  *n = static_cast<int>(occupancy(*p, static_cast<uint32_t>(threads),
                                  static_cast<uint32_t>(shared) + static_shared(*p)));
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, threads, shared, 0);
}
cudaError_t cudaOccupancyMaxActiveClusters(int* n, const void* f, const cudaLaunchConfig_t* c) {
  int per_sm = 0;
  int threads = static_cast<int>(c->blockDim.x * c->blockDim.y * c->blockDim.z);
  if (cudaError_t e =
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, f, threads, c->dynamicSmemBytes))
    return e;
  unsigned size = 0;
  for (unsigned i = 0; i < c->numAttrs; ++i)
    if (c->attrs[i].id == cudaLaunchAttributeClusterDimension)
      size = c->attrs[i].val.clusterDim.x * c->attrs[i].val.clusterDim.y *
             c->attrs[i].val.clusterDim.z;
  *n = 0;
  if (size == 0) return cudaSuccess;  // as on a GPU, where a launch without clusters gets no number
  *n = static_cast<int>(static_cast<unsigned>(per_sm) * Machine::get().settings.sms / size);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  cudaError_t e = Registry::get().last;
  if (!Machine::get().failed()) Registry::get().last = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return Registry::get().last; }
const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorInvalidPtx:
      return "cudaErrorInvalidPtx";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t e) {
  // The reason is worth more than the name; it is kept until the next refusal.
  static std::string text;
  if (e == cudaErrorLaunchFailure && Machine::get().failed())
    text = "emulator: " + Machine::get().report.text();
  else if (e != cudaSuccess && e == Registry::get().last && !Registry::get().refusal.empty())
    text = Registry::get().refusal;
  else return e == cudaSuccess ? "no error" : cudaGetErrorName(e);
  return text.c_str();
}

cudaError_t cudaGetDriverEntryPoint(const char* name, void** f, unsigned long long,
                                    cudaDriverEntryPointQueryResult* r) {
  return entry_point(name, f, r);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* r) {
  return entry_point(name, f, r);
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* dims, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* element_strides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  return encode_tiled_entry(map, type, rank, address, dims, strides, box, element_strides,
                            interleave, swizzle, promotion, fill);
}

}  // extern "C"
