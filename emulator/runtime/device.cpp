// Functions, occupancy, and the driver's entry points.
#include <cuda.h>

#include <dlfcn.h>

#include <cstring>

#include "runtime/streams.h"
#include "tensor/tensor_map.h"

using namespace l4k::emu;

namespace {

uint32_t static_shared(const Program& p) { return p.static_shared_end - 1024; }

CUresult encode_tiled_entry(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                            void* address, const cuuint64_t* dims, const cuuint64_t* strides,
                            const cuuint32_t* box, const cuuint32_t* element_strides,
                            CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                            CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  EncodeResult r = encode_tiled(map, type, rank, address, dims, strides, box, element_strides,
                                interleave, swizzle, promotion, fill);
  if (r.code != EncodeCode::ok) note_refusal(r.reason);
  return static_cast<CUresult>(r.code);
}
// The newest version of a driver function that this library has; null: it has none.
void* driver_function(const std::string& name) {
  static void* library = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&encode_tiled_entry), &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  if (name.rfind("cu", 0) != 0 || name.rfind("cuda", 0) == 0 || !library) return nullptr;
  for (const char* version : {"_v4", "_v3", "_v2", ""})
    if (void* f = dlsym(library, (name + version).c_str())) return f;
  return nullptr;
}

cudaError_t entry_point(const char* name, void** f, cudaDriverEntryPointQueryResult* result) {
  *f = driver_function(name);
  if (result) *result = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  if (!*f)
    return refuse(cudaErrorNotSupported, std::string("driver entry point ") + name +
                                             " is not implemented by the emulator");
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaDeviceReset() {
  Lock lock(runtime_mutex());
  Machine::get().synchronize();
  Machine::get().reset();
  return cudaSuccess;
}

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
    case cudaFuncAttributeClusterSchedulingPolicyPreference:
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

cudaError_t cudaOccupancyMaxPotentialClusterSize(int* size, const void* f,
                                                 const cudaLaunchConfig_t*) {
  Kernel* k = Registry::get().find(f);
  if (!k) return Registry::get().last;
  return *size = k->non_portable_cluster ? 16 : 8, cudaSuccess;
}
cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, const void* f, int ctas, int) {
  Kernel* k = Registry::get().find(f);
  const Program* p = k ? k->load() : nullptr;
  if (!p) return Registry::get().last;
  if (ctas < 1) return refuse(cudaErrorInvalidValue, "cudaOccupancyAvailableDynamicSMemPerBlock");
  size_t each = std::min<size_t>(228 * 1024 / static_cast<size_t>(ctas) - 1024, 227 * 1024);
  return *bytes = each > static_shared(*p) ? each - static_shared(*p) : 0, cudaSuccess;
}
cudaError_t cudaGetFuncBySymbol(cudaFunction_t* function, const void* symbol) {
  *function = reinterpret_cast<cudaFunction_t>(Registry::get().find(symbol));
  return *function ? cudaSuccess : Registry::get().last;
}
cudaError_t cudaGetKernel(cudaKernel_t* kernel, const void* symbol) {
  *kernel = reinterpret_cast<cudaKernel_t>(Registry::get().find(symbol));
  return *kernel ? cudaSuccess : Registry::get().last;
}
cudaError_t cudaFuncGetName(const char** name, const void* f) {
  Kernel* k = Registry::get().find(f);
  return k ? (*name = k->name.c_str(), cudaSuccess) : Registry::get().last;
}
cudaError_t cudaFuncGetParamInfo(const void* f, size_t index, size_t* offset, size_t* bytes) {
  Kernel* k = Registry::get().find(f);
  const Program* p = k ? k->load() : nullptr;
  if (!p) return Registry::get().last;
  if (index >= p->ptx->params.size())
    return refuse(cudaErrorInvalidValue, k->name + " has no parameter " + std::to_string(index));
  *offset = p->ptx->params[index]->address;
  if (bytes) *bytes = p->ptx->params[index]->bytes;
  return cudaSuccess;
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
