// The driver API: contexts, modules, functions, launches. The rest is in driver_memory.cpp.
#include "runtime/driver.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

#include "machine/image.h"
#include "runtime/work.h"

using namespace l4k::emu;

namespace {

struct Name {
  int code;
  const char* name;
};
constexpr Name kNames[] = {
    {0, "CUDA_SUCCESS"},
    {1, "CUDA_ERROR_INVALID_VALUE"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY"},
    {3, "CUDA_ERROR_NOT_INITIALIZED"},
    {4, "CUDA_ERROR_DEINITIALIZED"},
    {5, "CUDA_ERROR_PROFILER_DISABLED"},
    {6, "CUDA_ERROR_PROFILER_NOT_INITIALIZED"},
    {7, "CUDA_ERROR_PROFILER_ALREADY_STARTED"},
    {8, "CUDA_ERROR_PROFILER_ALREADY_STOPPED"},
    {34, "CUDA_ERROR_STUB_LIBRARY"},
    {36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE"},
    {100, "CUDA_ERROR_NO_DEVICE"},
    {101, "CUDA_ERROR_INVALID_DEVICE"},
    {102, "CUDA_ERROR_DEVICE_NOT_LICENSED"},
    {200, "CUDA_ERROR_INVALID_IMAGE"},
    {201, "CUDA_ERROR_INVALID_CONTEXT"},
    {202, "CUDA_ERROR_CONTEXT_ALREADY_CURRENT"},
    {205, "CUDA_ERROR_MAP_FAILED"},
    {206, "CUDA_ERROR_UNMAP_FAILED"},
    {207, "CUDA_ERROR_ARRAY_IS_MAPPED"},
    {208, "CUDA_ERROR_ALREADY_MAPPED"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
    {210, "CUDA_ERROR_ALREADY_ACQUIRED"},
    {211, "CUDA_ERROR_NOT_MAPPED"},
    {212, "CUDA_ERROR_NOT_MAPPED_AS_ARRAY"},
    {213, "CUDA_ERROR_NOT_MAPPED_AS_POINTER"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE"},
    {215, "CUDA_ERROR_UNSUPPORTED_LIMIT"},
    {216, "CUDA_ERROR_CONTEXT_ALREADY_IN_USE"},
    {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"},
    {218, "CUDA_ERROR_INVALID_PTX"},
    {219, "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT"},
    {220, "CUDA_ERROR_NVLINK_UNCORRECTABLE"},
    {221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
    {223, "CUDA_ERROR_JIT_COMPILATION_DISABLED"},
    {224, "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY"},
    {225, "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC"},
    {226, "CUDA_ERROR_CONTAINED"},
    {300, "CUDA_ERROR_INVALID_SOURCE"},
    {301, "CUDA_ERROR_FILE_NOT_FOUND"},
    {302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND"},
    {303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM"},
    {400, "CUDA_ERROR_INVALID_HANDLE"},
    {401, "CUDA_ERROR_ILLEGAL_STATE"},
    {402, "CUDA_ERROR_LOSSY_QUERY"},
    {500, "CUDA_ERROR_NOT_FOUND"},
    {600, "CUDA_ERROR_NOT_READY"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT"},
    {703, "CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING"},
    {704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED"},
    {705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED"},
    {708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
    {710, "CUDA_ERROR_ASSERT"},
    {711, "CUDA_ERROR_TOO_MANY_PEERS"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"},
    {714, "CUDA_ERROR_HARDWARE_STACK_ERROR"},
    {715, "CUDA_ERROR_ILLEGAL_INSTRUCTION"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS"},
    {717, "CUDA_ERROR_INVALID_ADDRESS_SPACE"},
    {718, "CUDA_ERROR_INVALID_PC"},
    {719, "CUDA_ERROR_LAUNCH_FAILED"},
    {720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"},
    {721, "CUDA_ERROR_TENSOR_MEMORY_LEAK"},
    {800, "CUDA_ERROR_NOT_PERMITTED"},
    {801, "CUDA_ERROR_NOT_SUPPORTED"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"},
    {805, "CUDA_ERROR_MPS_CONNECTION_FAILED"},
    {806, "CUDA_ERROR_MPS_RPC_FAILURE"},
    {807, "CUDA_ERROR_MPS_SERVER_NOT_READY"},
    {808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED"},
    {809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED"},
    {810, "CUDA_ERROR_MPS_CLIENT_TERMINATED"},
    {811, "CUDA_ERROR_CDP_NOT_SUPPORTED"},
    {812, "CUDA_ERROR_CDP_VERSION_MISMATCH"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"},
    {907, "CUDA_ERROR_CAPTURED_EVENT"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"},
    {909, "CUDA_ERROR_TIMEOUT"},
    {910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE"},
    {911, "CUDA_ERROR_EXTERNAL_DEVICE"},
    {912, "CUDA_ERROR_INVALID_CLUSTER_SIZE"},
    {913, "CUDA_ERROR_FUNCTION_NOT_LOADED"},
    {914, "CUDA_ERROR_INVALID_RESOURCE_TYPE"},
    {915, "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION"},
    {916, "CUDA_ERROR_KEY_ROTATION"},
    {999, "CUDA_ERROR_UNKNOWN"},
};

const Name* find(CUresult code) {
  const Name* n = std::find_if(std::begin(kNames), std::end(kNames),
                               [&](const Name& known) { return known.code == int(code); });
  return n == std::end(kNames) ? nullptr : n;
}

// A loaded module, and its kernels by name.
struct Module {
  FatBinary* binary = nullptr;
  std::map<std::string, Kernel*> kernels;
};

std::map<CUmodule, std::unique_ptr<Module>>& modules() {
  static auto* modules = new std::map<CUmodule, std::unique_ptr<Module>>;
  return *modules;
}

Module* find(CUmodule handle) {
  auto it = modules().find(handle);
  if (it != modules().end()) return it->second.get();
  refuse(cudaErrorInvalidResourceHandle, "not a module, or one that has been unloaded");
  return nullptr;
}

// PTX text or a fat binary.
CUresult load(CUmodule* out, const void* image) {
  uint32_t magic = 0;
  if (!image || !out)
    return driver(refuse(cudaErrorInvalidValue, "cuModuleLoadData of a null pointer"));
  std::memcpy(&magic, image, 4);
  if (magic == 0x464c457f)
    return driver(refuse(cudaErrorNoKernelImageForDevice,
                         "the module is machine code: the emulator runs PTX (nvcc -ptx)"));
  auto binary = std::make_unique<FatBinary>();
  try {
    if (magic == 0xba55ed50 || magic == 0x466243b1) {
      binary->data = image;
      binary->load();
      if (!binary->error.empty()) return driver(refuse(cudaErrorInvalidPtx, binary->error));
    } else {
      binary->loaded = true;
      binary->images.push_back(load_image(static_cast<const char*>(image)));
    }
  } catch (const PtxError& e) {
    return driver(refuse(cudaErrorInvalidPtx, e.what()));
  }
  auto module = std::make_unique<Module>();
  module->binary = binary.get();
  *out = reinterpret_cast<CUmodule>(module.get());
  Registry::get().binaries.push_back(std::move(binary));
  modules()[*out] = std::move(module);
  return CUDA_SUCCESS;
}

Kernel* function(Module& module, const char* name) {
  Kernel*& known = module.kernels[name];
  if (known) return known;
  auto kernel = std::make_unique<Kernel>();
  kernel->binary = module.binary;
  kernel->name = name;
  if (!kernel->load()) return nullptr;
  known = kernel.get();
  Registry::get().kernels[known] =
      std::move(kernel);  // its own address stands for the host function
  return known;
}

int dummy_context;
CUcontext context() { return reinterpret_cast<CUcontext>(&dummy_context); }

// The packed form of a launch's parameters.
const void* packed(void** extra, size_t* bytes) {
  const void* buffer = nullptr;
  for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = extra[1];
    if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) *bytes = *static_cast<size_t*>(extra[1]);
  }
  return buffer;
}

CUresult launch_function(CUfunction f, dim3 grid, dim3 block, size_t shared, CUstream stream,
                         void** params, void** extra, const CUlaunchAttribute* attributes,
                         unsigned count) {
  Lock lock(runtime_mutex());
  KernelWork work;
  size_t bytes = 0;
  const void* buffer = packed(extra, &bytes);
  cudaError_t e = buffer ? prepare_packed(&work, f, grid, block, buffer, bytes, shared)
                         : prepare(&work, f, grid, block, params, shared,
                                   reinterpret_cast<const cudaLaunchAttribute*>(attributes), count);
  return driver(e ? e : submit(stream, std::move(work)));
}

}  // namespace

namespace l4k::emu {

CUresult driver(cudaError_t e) {
  // The runtime's own errors have no counterpart in the driver.
  bool own = !find(static_cast<CUresult>(e));
  return own ? CUDA_ERROR_INVALID_VALUE : static_cast<CUresult>(e);
}

}  // namespace l4k::emu

extern "C" {

CUresult cuInit(unsigned flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* v) { return driver(cudaDriverGetVersion(v)); }
CUresult cuGetErrorName(CUresult code, const char** s) {
  const Name* n = find(code);
  *s = n ? n->name : nullptr;
  return n ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult code, const char** s) {
  bool known = find(code) != nullptr;
  *s = known ? cudaGetErrorString(static_cast<cudaError_t>(code)) : nullptr;
  return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuDeviceGet(CUdevice* d, int ordinal) {
  if (ordinal) return driver(refuse(cudaErrorInvalidDevice, "the emulator has device 0 only"));
  return *d = 0, CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* n) { return driver(cudaGetDeviceCount(n)); }
CUresult cuDeviceGetName(char* name, int n, CUdevice d) {
  cudaDeviceProp p;
  if (cudaError_t e = cudaGetDeviceProperties(&p, d)) return driver(e);
  std::snprintf(name, static_cast<size_t>(n), "%s", p.name);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice d) {
  cudaDeviceProp p;
  cudaError_t e = cudaGetDeviceProperties(&p, d);
  *uuid = p.uuid;
  return driver(e);
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  return *bytes = kTotalMemory, CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice d) {
  return driver(cudaDeviceGetAttribute(v, static_cast<cudaDeviceAttr>(a), d));
}
CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
  return *major = 9, *minor = 0, CUDA_SUCCESS;
}
CUresult cuDeviceGetPCIBusId(char* id, int n, CUdevice d) {
  return driver(cudaDeviceGetPCIBusId(id, n, d));
}
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice d) {
  return driver(cudaDeviceGetDefaultMemPool(pool, d));
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { return *c = context(), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice, unsigned) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxReset_v2(CUdevice) { return driver(cudaDeviceReset()); }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, CUDA_SUCCESS;
}
CUresult cuCtxCreate_v2(CUcontext* c, unsigned, CUdevice) { return *c = context(), CUDA_SUCCESS; }
CUresult cuCtxCreate_v4(CUcontext* c, CUctxCreateParams*, unsigned, CUdevice) {
  return *c = context(), CUDA_SUCCESS;
}
CUresult cuCtxDestroy_v2(CUcontext) { return driver(cudaDeviceSynchronize()); }
CUresult cuCtxPushCurrent_v2(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent_v2(CUcontext* c) { return c ? *c = context() : nullptr, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* c) { return *c = context(), CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* d) { return *d = 0, CUDA_SUCCESS; }
CUresult cuCtxGetFlags(unsigned* flags) { return *flags = 0, CUDA_SUCCESS; }
CUresult cuCtxGetApiVersion(CUcontext, unsigned* v) { return *v = 13000, CUDA_SUCCESS; }
CUresult cuCtxSynchronize(void) { return driver(cudaDeviceSynchronize()); }
CUresult cuCtxSetLimit(CUlimit l, size_t v) {
  return driver(cudaDeviceSetLimit(static_cast<cudaLimit>(l), v));
}
CUresult cuCtxGetLimit(size_t* v, CUlimit l) {
  return driver(cudaDeviceGetLimit(v, static_cast<cudaLimit>(l)));
}
CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return driver(cudaDeviceGetStreamPriorityRange(least, greatest));
}
CUresult cuCtxSetCacheConfig(CUfunc_cache) { return CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule* m, const void* image) {
  Lock lock(runtime_mutex());
  return load(m, image);
}
CUresult cuModuleLoadDataEx(CUmodule* m, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(m, image);
}
CUresult cuModuleLoadFatBinary(CUmodule* m, const void* image) {
  return cuModuleLoadData(m, image);
}
CUresult cuModuleLoad(CUmodule* m, const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return driver(refuse(cudaErrorFileNotFound, std::string("cannot read ") + path));
  std::stringstream text;
  text << file.rdbuf();
  // A fat binary stays where it is for as long as the program runs.
  static auto* kept = new std::vector<std::unique_ptr<std::string>>;
  kept->push_back(std::make_unique<std::string>(text.str()));
  return cuModuleLoadData(m, kept->back()->c_str());
}
CUresult cuModuleUnload(CUmodule handle) {
  Lock lock(runtime_mutex());
  Module* m = find(handle);
  if (!m) return driver(Registry::get().last);
  cudaError_t e = settle();
  for (const auto& [name, kernel] : m->kernels) Registry::get().kernels.erase(kernel);
  modules().erase(handle);
  return driver(e);
}
CUresult cuModuleGetFunction(CUfunction* f, CUmodule handle, const char* name) {
  Lock lock(runtime_mutex());
  Module* m = find(handle);
  if (!m) return driver(Registry::get().last);
  *f = reinterpret_cast<CUfunction>(function(*m, name));
  return *f ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuModuleGetGlobal_v2(CUdeviceptr* p, size_t* bytes, CUmodule handle, const char* name) {
  Lock lock(runtime_mutex());
  Module* m = find(handle);
  if (!m) return driver(Registry::get().last);
  for (const auto& image : m->binary->images)
    if (const Variable* v = image->module->find_variable(name)) {
      if (p) *p = v->address;
      if (bytes) *bytes = v->bytes;
      return CUDA_SUCCESS;
    }
  refuse(cudaErrorInvalidSymbol, std::string("the module has no variable ") + name);
  return CUDA_ERROR_NOT_FOUND;
}
CUresult cuLinkCreate_v2(unsigned, CUjit_option*, void**, CUlinkState*) {
  return driver(refuse(cudaErrorNotSupported, "cuLinkCreate is not implemented by the emulator"));
}

CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
  return driver(cudaFuncSetAttribute(f, static_cast<cudaFuncAttribute>(a), v));
}
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
  cudaFuncAttributes all;
  if (cudaError_t e = cudaFuncGetAttributes(&all, f)) return driver(e);
  switch (a) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      return *v = all.maxThreadsPerBlock, CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      return *v = static_cast<int>(all.sharedSizeBytes), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
      return *v = static_cast<int>(all.constSizeBytes), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
      return *v = static_cast<int>(all.localSizeBytes), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      return *v = all.numRegs, CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      return *v = all.binaryVersion, CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      return *v = all.maxDynamicSharedSizeBytes, CUDA_SUCCESS;
    default:
      return driver(refuse(cudaErrorNotSupported, "function attribute " + std::to_string(int(a)) +
                                                      " is not implemented by the emulator"));
  }
}
CUresult cuFuncGetName(const char** name, CUfunction f) {
  Lock lock(runtime_mutex());
  Kernel* k = Registry::get().find(f);
  return k ? (*name = k->name.c_str(), CUDA_SUCCESS) : driver(Registry::get().last);
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, CUstream s, void** params,
                        void** extra) {
  return launch_function(f, dim3(gx, gy, gz), dim3(bx, by, bz), shared, s, params, extra, nullptr,
                         0);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** params, void** extra) {
  return launch_function(f, dim3(c->gridDimX, c->gridDimY, c->gridDimZ),
                         dim3(c->blockDimX, c->blockDimY, c->blockDimZ), c->sharedMemBytes,
                         c->hStream, params, extra, c->attrs, c->numAttrs);
}
CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                   unsigned by, unsigned bz, unsigned shared, CUstream s,
                                   void** params) {
  return driver(
      cudaLaunchCooperativeKernel(f, dim3(gx, gy, gz), dim3(bx, by, bz), params, shared, s));
}
CUresult cuLaunchHostFunc(CUstream s, CUhostFn f, void* data) {
  return driver(cudaLaunchHostFunc(s, f, data));
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction f, int threads,
                                                     size_t shared) {
  return driver(cudaOccupancyMaxActiveBlocksPerMultiprocessor(n, f, threads, shared));
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, CUfunction f, int threads,
                                                              size_t shared, unsigned flags) {
  return driver(
      cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, threads, shared, flags));
}
CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction f,
                                          CUoccupancyB2DSize shared_of, size_t shared, int limit) {
  int best = 0;
  for (int threads = limit && limit < 1024 ? limit / 32 * 32 : 1024; threads >= 32; threads -= 32) {
    int n = 0;
    size_t bytes = shared_of ? shared_of(threads) : shared;
    if (cudaError_t e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, f, threads, bytes))
      return driver(e);
    if (n * threads <= best) continue;
    best = n * threads;
    *block = threads;
    *grid = n * static_cast<int>(Machine::get().settings.sms);
  }
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeIm2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const int*, const int*,
                                 cuuint32_t, cuuint32_t, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill) {
  return driver(
      refuse(cudaErrorNotSupported, "cuTensorMapEncodeIm2col is not implemented by the emulator"));
}
CUresult cuGetProcAddress_v2(const char* name, void** f, int, cuuint64_t,
                             CUdriverProcAddressQueryResult* result) {
  cudaDriverEntryPointQueryResult found;
  cudaError_t e =
      cudaGetDriverEntryPointByVersion(name, f, CUDART_VERSION, cudaEnableDefault, &found);
  if (result) *result = e ? CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND : CU_GET_PROC_ADDRESS_SUCCESS;
  return e ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}

}  // extern "C"
