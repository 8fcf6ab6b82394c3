// What the production objects are linked with to see what a call costs the host: in place of the CUDA
// runtime, functions that count and return, and around torch's, wrappers (the linker's --wrap) that
// let CPU tensors pass for a GPU's. Every boxed binding is timed from its entry to its return.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/c/shim.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Count { kLaunches, kMaps, kAttributes, kOccupancy, kDevices, kOther, kAllocations, kCounts };
uint64_t counts[kCounts];

using Clock = std::chrono::steady_clock;
double ns_since(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}
Clock::time_point entry;
double launch_ns, call_ns;  // of the last call: until its last launch, and its return
double torch_ns;            // of the former, in torch's allocation of results

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);
constexpr size_t kMaxOps = 128;
Boxed bindings[kMaxOps];
size_t num_bindings;

// Instructions are counted by running them one at a time: with the trap flag set, the CPU stops after
// each. It is slow, and the same on every machine and under any load.
bool counts_instructions;
volatile uint64_t instructions, launch_instructions;
void on_trap(int) { instructions = instructions + 1; }

__attribute__((noinline)) void set_trap_flag() {
  asm volatile(
      "lea -128(%%rsp), %%rsp; pushfq; orq $0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
          : "memory", "cc");
}
__attribute__((noinline)) void clear_trap_flag() {
  asm volatile(
      "lea -128(%%rsp), %%rsp; pushfq; andq $~0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
          : "memory", "cc");
}

template <size_t I>
void timed(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  launch_ns = torch_ns = 0;
  entry = Clock::now();
  if (counts_instructions) set_trap_flag();
  bindings[I](stack, inputs, outputs);
  if (counts_instructions) clear_trap_flag();
  call_ns = ns_since(entry);
}

template <size_t... I>
constexpr std::array<Boxed, sizeof...(I)> timers(std::index_sequence<I...>) {
  return {timed<I>...};
}
constexpr auto kTimers = timers(std::make_index_sequence<kMaxOps>());

cudaError_t count(Count which) {
  ++counts[which];
  return cudaSuccess;
}

cudaError_t count_launch() {
  launch_ns = ns_since(entry);
  launch_instructions = instructions;
  return count(kLaunches);
}

CUresult encode(CUtensorMap* map, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  ++counts[kMaps];
  std::memset(map, 1, sizeof *map);
  return CUDA_SUCCESS;
}

}  // namespace

// Launches, tensor maps, attributes of functions, occupancy queries, cudaGetDevice, other calls of
// the runtime, heap allocations of the bindings' own code; then ns of the last call.
EXPORT void l4k_stub_take(uint64_t* counted, double* ns) {
  std::memcpy(counted, counts, sizeof counts);
  std::memset(counts, 0, sizeof counts);
  ns[0] = launch_ns, ns[1] = torch_ns, ns[2] = call_ns;
}

// Whether calls from here on are counted instruction by instruction; returns those of the last call until
// its last launch, without torch's allocation of results.
EXPORT uint64_t l4k_stub_count_instructions(int on) {
  if (on) std::signal(SIGTRAP, on_trap);
  counts_instructions = on;
  instructions = 0;
  return launch_instructions;
}

extern "C" {

// The runtime.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return count_launch();
}
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return count_launch(); }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return count(kAttributes); }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxDynamicSharedSizeBytes = 48 * 1024;
  return count(kAttributes);
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*,
                                           const cudaLaunchConfig_t* c) {
  *clusters = 132 / static_cast<int>(c->gridDim.x);
  return count(kOccupancy);
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return count(kDevices);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 132;  // nothing else is asked for
  return count(kOther);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *function = reinterpret_cast<void*>(encode);
  *found = cudaDriverEntryPointSuccess;
  return count(kOther);
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::calloc(bytes, 1);
  return count(kOther);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return count(kOther); }
cudaError_t cudaGetLastError() { return count(kOther); }
const char* cudaGetErrorString(cudaError_t) { return "an error of the stub"; }
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return count_launch();
}
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }

// torch.
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError __wrap_aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = aoti_torch_device_type_cuda();
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError __wrap_aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = 0;
  return AOTI_TORCH_SUCCESS;
}
decltype(aoti_torch_empty_strided) __real_aoti_torch_empty_strided;
AOTITorchError __wrap_aoti_torch_empty_strided(int64_t rank, const int64_t* sizes,
                                               const int64_t* strides, int32_t dtype, int32_t,
                                               int32_t, AtenTensorHandle* made) {
  if (counts_instructions) clear_trap_flag();
  const auto start = Clock::now();
  const AOTITorchError error = __real_aoti_torch_empty_strided(
      rank, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, made);
  torch_ns += ns_since(start);
  if (counts_instructions) set_trap_flag();
  return error;
}
decltype(aoti_torch_library_init_impl) __real_aoti_torch_library_init_impl;
AOTITorchError __wrap_aoti_torch_library_init_impl(const char*, const char*, const char* file,
                                                   uint32_t line, TorchLibraryHandle* made) {
  return __real_aoti_torch_library_init_impl("l4kernels_stubbed", "CPU", file, line, made);
}
decltype(torch_library_impl) __real_torch_library_impl;
AOTITorchError __wrap_torch_library_impl(TorchLibraryHandle library, const char* name,
                                         Boxed binding, uint64_t version) {
  if (num_bindings == kMaxOps) std::abort();
  bindings[num_bindings] = binding;
  return __real_torch_library_impl(library, name, kTimers[num_bindings++], version);
}

// The heap, as far as the objects call it themselves.
void* __real__Znwm(size_t bytes);
void* __wrap__Znwm(size_t bytes) {
  ++counts[kAllocations];
  return __real__Znwm(bytes);
}
void* __real_malloc(size_t bytes);
void* __wrap_malloc(size_t bytes) {
  ++counts[kAllocations];
  return __real_malloc(bytes);
}

}  // extern "C"
