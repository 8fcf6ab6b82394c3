// The device: an H200, whose attributes and properties come from one table.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>

#include "runtime/streams.h"

using namespace l4k::emu;

namespace {

struct Attribute {
  cudaDeviceAttr id;
  int value;
  size_t offset = 0, size = 0;  // of the property that has the same value; size 0: none has
};

#define PROPERTY(id, value, member) \
  {cudaDevAttr##id, value, offsetof(cudaDeviceProp, member), sizeof(cudaDeviceProp::member)}
#define ELEMENT(id, value, member, index) \
  {cudaDevAttr##id, value, offsetof(cudaDeviceProp, member) + (index) * sizeof(int), sizeof(int)}
#define ONLY(id, value) {cudaDevAttr##id, value}

// The number of multiprocessors is a setting.
constexpr Attribute kAttributes[] = {
    // Launches
    PROPERTY(MaxThreadsPerBlock, 1024, maxThreadsPerBlock),
    ELEMENT(MaxBlockDimX, 1024, maxThreadsDim, 0),
    ELEMENT(MaxBlockDimY, 1024, maxThreadsDim, 1),
    ELEMENT(MaxBlockDimZ, 64, maxThreadsDim, 2),
    ELEMENT(MaxGridDimX, 0x7fffffff, maxGridSize, 0),
    ELEMENT(MaxGridDimY, 65535, maxGridSize, 1),
    ELEMENT(MaxGridDimZ, 65535, maxGridSize, 2),
    PROPERTY(WarpSize, 32, warpSize),
    PROPERTY(MaxThreadsPerMultiProcessor, 2048, maxThreadsPerMultiProcessor),
    PROPERTY(MaxBlocksPerMultiprocessor, 32, maxBlocksPerMultiProcessor),
    PROPERTY(MaxRegistersPerBlock, 65536, regsPerBlock),
    PROPERTY(MaxRegistersPerMultiprocessor, 65536, regsPerMultiprocessor),
    PROPERTY(ConcurrentKernels, 1, concurrentKernels),
    PROPERTY(CooperativeLaunch, 1, cooperativeLaunch),
    PROPERTY(ClusterLaunch, 1, clusterLaunch),
    PROPERTY(ComputePreemptionSupported, 1, computePreemptionSupported),
    PROPERTY(StreamPrioritiesSupported, 1, streamPrioritiesSupported),
    ONLY(KernelExecTimeout, 0),
    ONLY(ComputeMode, cudaComputeModeDefault),
    // Shared and constant memory
    PROPERTY(MaxSharedMemoryPerBlock, 48 * 1024, sharedMemPerBlock),
    PROPERTY(MaxSharedMemoryPerBlockOptin, 227 * 1024, sharedMemPerBlockOptin),
    PROPERTY(MaxSharedMemoryPerMultiprocessor, 228 * 1024, sharedMemPerMultiprocessor),
    PROPERTY(ReservedSharedMemoryPerBlock, 1024, reservedSharedMemPerBlock),
    PROPERTY(TotalConstantMemory, 65536, totalConstMem),
    // Speeds and caches
    ONLY(ClockRate, 1980000),
    ONLY(MemoryClockRate, 3201000),
    PROPERTY(GlobalMemoryBusWidth, 6144, memoryBusWidth),
    PROPERTY(L2CacheSize, 60 << 20, l2CacheSize),
    PROPERTY(MaxPersistingL2CacheSize, (60 << 20) / 8 * 5, persistingL2CacheMaxSize),
    PROPERTY(MaxAccessPolicyWindowSize, 128 << 20, accessPolicyMaxWindowSize),
    PROPERTY(GlobalL1CacheSupported, 1, globalL1CacheSupported),
    PROPERTY(LocalL1CacheSupported, 1, localL1CacheSupported),
    ONLY(SingleToDoublePrecisionPerfRatio, 2),
    PROPERTY(AsyncEngineCount, 3, asyncEngineCount),
    ONLY(GpuOverlap, 1),
    // The device and its place
    PROPERTY(ComputeCapabilityMajor, 9, major),
    PROPERTY(ComputeCapabilityMinor, 0, minor),
    PROPERTY(EccEnabled, 1, ECCEnabled),
    PROPERTY(Integrated, 0, integrated),
    PROPERTY(TccDriver, 0, tccDriver),
    PROPERTY(PciBusId, 1, pciBusID),
    PROPERTY(PciDeviceId, 0, pciDeviceID),
    PROPERTY(PciDomainId, 0, pciDomainID),
    PROPERTY(GpuPciDeviceId, 0x233510de, gpuPciDeviceID),
    PROPERTY(GpuPciSubsystemId, 0x18be10de, gpuPciSubsystemID),
    PROPERTY(IsMultiGpuBoard, 0, isMultiGpuBoard),
    PROPERTY(MultiGpuBoardGroupID, 0, multiGpuBoardGroupID),
    PROPERTY(NumaConfig, cudaDeviceNumaConfigNone, deviceNumaConfig),
    PROPERTY(NumaId, -1, deviceNumaId),
    PROPERTY(HostNumaId, 0, hostNumaId),
    PROPERTY(MpsEnabled, 0, mpsEnabled),
    // Memory that host and device share
    PROPERTY(MaxPitch, 0x7fffffff, memPitch),
    PROPERTY(UnifiedAddressing, 1, unifiedAddressing),
    PROPERTY(ManagedMemory, 1, managedMemory),
    PROPERTY(ConcurrentManagedAccess, 1, concurrentManagedAccess),
    PROPERTY(DirectManagedMemAccessFromHost, 0, directManagedMemAccessFromHost),
    PROPERTY(PageableMemoryAccess, 0, pageableMemoryAccess),
    PROPERTY(PageableMemoryAccessUsesHostPageTables, 0, pageableMemoryAccessUsesHostPageTables),
    PROPERTY(CanMapHostMemory, 1, canMapHostMemory),
    PROPERTY(CanUseHostPointerForRegisteredMem, 1, canUseHostPointerForRegisteredMem),
    PROPERTY(HostRegisterSupported, 1, hostRegisterSupported),
    PROPERTY(HostRegisterReadOnlySupported, 0, hostRegisterReadOnlySupported),
    PROPERTY(HostNativeAtomicSupported, 0, hostNativeAtomicSupported),
    ONLY(OnlyPartialHostNativeAtomicSupported, 0),
    ONLY(CanFlushRemoteWrites, 0),
    PROPERTY(MemoryPoolsSupported, 1, memoryPoolsSupported),
    PROPERTY(MemoryPoolSupportedHandleTypes, 0, memoryPoolSupportedHandleTypes),
    ONLY(HostNumaMemoryPoolsSupported, 0),
    ONLY(HostMemoryPoolsSupported, 0),
    PROPERTY(HostNumaMultinodeIpcSupported, 0, hostNumaMultinodeIpcSupported),
    PROPERTY(GPUDirectRDMASupported, 0, gpuDirectRDMASupported),
    PROPERTY(GPUDirectRDMAFlushWritesOptions, 0, gpuDirectRDMAFlushWritesOptions),
    PROPERTY(GPUDirectRDMAWritesOrdering, 0, gpuDirectRDMAWritesOrdering),
    PROPERTY(IpcEventSupport, 0, ipcEventSupported),  // the emulator's: it has one process
    PROPERTY(TimelineSemaphoreInteropSupported, 0, timelineSemaphoreInteropSupported),
    ONLY(MemSyncDomainCount, 4),
    ONLY(D3D12CigSupported, 0),
    ONLY(VulkanCigSupported, 0),
    // Textures and surfaces
    PROPERTY(TextureAlignment, 512, textureAlignment),
    PROPERTY(TexturePitchAlignment, 32, texturePitchAlignment),
    PROPERTY(SurfaceAlignment, 512, surfaceAlignment),
    PROPERTY(SparseCudaArraySupported, 1, sparseCudaArraySupported),
    PROPERTY(DeferredMappingCudaArraySupported, 1, deferredMappingCudaArraySupported),
    PROPERTY(MaxTexture1DWidth, 131072, maxTexture1D),
    PROPERTY(MaxTexture1DMipmappedWidth, 32768, maxTexture1DMipmap),
    ONLY(MaxTexture1DLinearWidth, 268435456),
    ELEMENT(MaxTexture2DWidth, 131072, maxTexture2D, 0),
    ELEMENT(MaxTexture2DHeight, 65536, maxTexture2D, 1),
    ELEMENT(MaxTexture2DMipmappedWidth, 32768, maxTexture2DMipmap, 0),
    ELEMENT(MaxTexture2DMipmappedHeight, 32768, maxTexture2DMipmap, 1),
    ELEMENT(MaxTexture2DLinearWidth, 131072, maxTexture2DLinear, 0),
    ELEMENT(MaxTexture2DLinearHeight, 65000, maxTexture2DLinear, 1),
    ELEMENT(MaxTexture2DLinearPitch, 2097120, maxTexture2DLinear, 2),
    ELEMENT(MaxTexture2DGatherWidth, 32768, maxTexture2DGather, 0),
    ELEMENT(MaxTexture2DGatherHeight, 32768, maxTexture2DGather, 1),
    ELEMENT(MaxTexture3DWidth, 16384, maxTexture3D, 0),
    ELEMENT(MaxTexture3DHeight, 16384, maxTexture3D, 1),
    ELEMENT(MaxTexture3DDepth, 16384, maxTexture3D, 2),
    ELEMENT(MaxTexture3DWidthAlt, 8192, maxTexture3DAlt, 0),
    ELEMENT(MaxTexture3DHeightAlt, 8192, maxTexture3DAlt, 1),
    ELEMENT(MaxTexture3DDepthAlt, 32768, maxTexture3DAlt, 2),
    PROPERTY(MaxTextureCubemapWidth, 32768, maxTextureCubemap),
    ELEMENT(MaxTexture1DLayeredWidth, 32768, maxTexture1DLayered, 0),
    ELEMENT(MaxTexture1DLayeredLayers, 2048, maxTexture1DLayered, 1),
    ELEMENT(MaxTexture2DLayeredWidth, 32768, maxTexture2DLayered, 0),
    ELEMENT(MaxTexture2DLayeredHeight, 32768, maxTexture2DLayered, 1),
    ELEMENT(MaxTexture2DLayeredLayers, 2048, maxTexture2DLayered, 2),
    ELEMENT(MaxTextureCubemapLayeredWidth, 32768, maxTextureCubemapLayered, 0),
    ELEMENT(MaxTextureCubemapLayeredLayers, 2046, maxTextureCubemapLayered, 1),
    PROPERTY(MaxSurface1DWidth, 32768, maxSurface1D),
    ELEMENT(MaxSurface2DWidth, 131072, maxSurface2D, 0),
    ELEMENT(MaxSurface2DHeight, 65536, maxSurface2D, 1),
    ELEMENT(MaxSurface3DWidth, 16384, maxSurface3D, 0),
    ELEMENT(MaxSurface3DHeight, 16384, maxSurface3D, 1),
    ELEMENT(MaxSurface3DDepth, 16384, maxSurface3D, 2),
    ELEMENT(MaxSurface1DLayeredWidth, 32768, maxSurface1DLayered, 0),
    ELEMENT(MaxSurface1DLayeredLayers, 2048, maxSurface1DLayered, 1),
    ELEMENT(MaxSurface2DLayeredWidth, 32768, maxSurface2DLayered, 0),
    ELEMENT(MaxSurface2DLayeredHeight, 32768, maxSurface2DLayered, 1),
    ELEMENT(MaxSurface2DLayeredLayers, 2048, maxSurface2DLayered, 2),
    PROPERTY(MaxSurfaceCubemapWidth, 32768, maxSurfaceCubemap),
    ELEMENT(MaxSurfaceCubemapLayeredWidth, 32768, maxSurfaceCubemapLayered, 0),
    ELEMENT(MaxSurfaceCubemapLayeredLayers, 2046, maxSurfaceCubemapLayered, 1),
};

int multiprocessors() { return static_cast<int>(Machine::get().settings.sms); }

cudaError_t check_device(int device) {
  return device == 0 ? cudaSuccess
                     : refuse(cudaErrorInvalidDevice, "device " + std::to_string(device) +
                                                          ": the emulator has device 0 only");
}

constexpr char kBusId[] = "0000:01:00.0";

size_t& limit(cudaLimit which) {
  static size_t limits[] = {1024, 1 << 20, 8 << 20, 2, 2048, 64, 0};
  return limits[which];
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { return *d = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int d) { return check_device(d); }
cudaError_t cudaInitDevice(int d, unsigned, unsigned) { return check_device(d); }
cudaError_t cudaSetValidDevices(int*, int) { return cudaSuccess; }
cudaError_t cudaChooseDevice(int* d, const cudaDeviceProp*) { return *d = 0, cudaSuccess; }
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaGetDeviceFlags(unsigned* flags) { return *flags = cudaDeviceMapHost, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int device) {
  if (cudaError_t e = check_device(device)) return e;
  if (a == cudaDevAttrMultiProcessorCount) return *v = multiprocessors(), cudaSuccess;
  const auto* known = std::find_if(std::begin(kAttributes), std::end(kAttributes),
                                   [&](const Attribute& row) { return row.id == a; });
  if (known == std::end(kAttributes))
    return refuse(cudaErrorInvalidValue, "there is no device attribute " + std::to_string(int(a)));
  return *v = known->value, cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (cudaError_t e = check_device(device)) return e;
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "l4k emulator (sm_90a)");
  std::memcpy(p->uuid.bytes, "l4k emulator 90a", sizeof p->uuid.bytes);
  for (const auto& row : kAttributes) {
    const auto value = static_cast<int64_t>(row.value);  // little-endian, in 4 or 8 bytes
    std::memcpy(reinterpret_cast<char*>(p) + row.offset, &value, row.size);
  }
  p->totalGlobalMem = kTotalMemory;
  p->multiProcessorCount = multiprocessors();
  p->unifiedFunctionPointers = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int n, int device) {
  if (cudaError_t e = check_device(device)) return e;
  if (n < static_cast<int>(sizeof kBusId))
    return refuse(cudaErrorInvalidValue,
                  "cudaDeviceGetPCIBusId into " + std::to_string(n) + " bytes");
  return std::strcpy(id, kBusId), cudaSuccess;
}
cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* id) {
  if (std::strcmp(id, kBusId) != 0)
    return refuse(cudaErrorInvalidDevice, std::string("no device at ") + id);
  return *device = 0, cudaSuccess;
}
cudaError_t cudaDeviceSetLimit(cudaLimit which, size_t value) {
  if (which < 0 || which > cudaLimitPersistingL2CacheSize)
    return refuse(cudaErrorUnsupportedLimit, "limit " + std::to_string(int(which)));
  return limit(which) = value, cudaSuccess;
}
cudaError_t cudaDeviceGetLimit(size_t* value, cudaLimit which) {
  if (which < 0 || which > cudaLimitPersistingL2CacheSize)
    return refuse(cudaErrorUnsupportedLimit, "limit " + std::to_string(int(which)));
  return *value = limit(which), cudaSuccess;
}
cudaError_t cudaDeviceGetCacheConfig(cudaFuncCache* config) {
  return *config = cudaFuncCachePreferNone, cudaSuccess;
}
cudaError_t cudaDeviceSetCacheConfig(cudaFuncCache) { return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int a, int b) {
  *can = 0;
  if (cudaError_t e = check_device(a)) return e;
  return check_device(b);
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
  return refuse(cudaErrorInvalidDevice, "the emulator has one device, and no peers");
}
cudaError_t cudaDeviceDisablePeerAccess(int) {
  return refuse(cudaErrorPeerAccessNotEnabled, "the emulator has one device, and no peers");
}
cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t*, void*) {
  return refuse(cudaErrorNotSupported, "cudaIpcGetMemHandle is not implemented by the emulator");
}
cudaError_t cudaIpcOpenMemHandle(void**, cudaIpcMemHandle_t, unsigned) {
  return refuse(cudaErrorNotSupported, "cudaIpcOpenMemHandle is not implemented by the emulator");
}
cudaError_t cudaIpcCloseMemHandle(void*) {
  return refuse(cudaErrorNotSupported, "cudaIpcCloseMemHandle is not implemented by the emulator");
}
cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t*, cudaEvent_t) {
  return refuse(cudaErrorNotSupported, "cudaIpcGetEventHandle is not implemented by the emulator");
}
cudaError_t cudaIpcOpenEventHandle(cudaEvent_t*, cudaIpcEventHandle_t) {
  return refuse(cudaErrorNotSupported, "cudaIpcOpenEventHandle is not implemented by the emulator");
}

}  // extern "C"
