// What calls of the runtime return, right and wrong ones, as CUDA's documentation has it.
#include <cassert>
#include <string>

#include "device.cuh"
#include "host.h"

extern "C" const char* l4k_emu_report_kind(void);  // as in l4k_emulator.h
extern "C" void l4k_emu_reset(void);
extern "C" int l4k_emu_configure_text(const char*);

// The name of a call with --default-stream per-thread.
extern "C" cudaError_t cudaStreamGetId_ptsz(cudaStream_t, unsigned long long*);

static int failures = 0;
static void expect(cudaError_t got, cudaError_t want, const char* call, int line) {
  if (got == want) return;
  std::printf("FAIL line %d: %s is %s, expected %s\n", line, call, cudaGetErrorName(got),
              cudaGetErrorName(want));
  ++failures;
}
#define EXPECT(want, call) expect((call), (want), #call, __LINE__)
#define OK(call) EXPECT(cudaSuccess, call)
#define TRUE(condition) \
  expect((condition) ? cudaSuccess : cudaErrorUnknown, cudaSuccess, #condition, __LINE__)
// The operation itself is an error of the program: reported, and forgotten.
#define REPORTED(kind, call)                        \
  EXPECT(cudaErrorLaunchFailure, call);             \
  TRUE(l4k_emu_report_kind() == std::string(kind)); \
  l4k_emu_reset()

__global__ void touch(int* p) { p[threadIdx.x] += 1; }
__global__ void claim(int* p) { assert(p[threadIdx.x] < 0); }

void assertions() {
  Buffer<int> x(std::vector<int>(32, 1));
  claim<<<1, 32>>>(x.data);
  EXPECT(cudaErrorAssert, cudaDeviceSynchronize());
  TRUE(l4k_emu_report_kind() == std::string("assertion"));
  l4k_emu_reset();
}

void streams() {
  cudaStream_t s, t;
  unsigned flags = 9;
  int priority = 9, least = 9, greatest = 9;
  EXPECT(cudaErrorInvalidValue, cudaStreamCreateWithFlags(&s, 77));
  OK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  TRUE(least == 0 && greatest < 0);
  OK(cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, greatest - 9));
  OK(cudaStreamGetFlags(s, &flags));
  OK(cudaStreamGetPriority(s, &priority));
  TRUE(flags == cudaStreamNonBlocking && priority == greatest);
  OK(cudaStreamCreate(&t));
  OK(cudaStreamGetFlags(t, &flags));
  TRUE(flags == cudaStreamDefault);
  OK(cudaStreamQuery(s));
  OK(cudaStreamSynchronize(cudaStreamPerThread));
  OK(cudaStreamSynchronize(cudaStreamLegacy));
  unsigned long long legacy = 7, mine = 7, per_thread = 7;
  OK(cudaStreamGetId(nullptr, &legacy));
  OK(cudaStreamGetId(cudaStreamPerThread, &mine));
  OK(cudaStreamGetId_ptsz(nullptr, &per_thread));
  TRUE(legacy != mine && per_thread == mine);
  OK(cudaStreamDestroy(t));
  EXPECT(cudaErrorInvalidResourceHandle, cudaStreamSynchronize(t));
  EXPECT(cudaErrorInvalidResourceHandle, cudaStreamDestroy(t));
  EXPECT(cudaErrorInvalidResourceHandle, cudaStreamDestroy(nullptr));
  EXPECT(cudaErrorInvalidResourceHandle, cudaMemsetAsync(nullptr, 0, 0, t));
  touch<<<1, 1, 0, t>>>(nullptr);
  EXPECT(cudaErrorInvalidResourceHandle, cudaGetLastError());
  OK(cudaGetLastError());
  OK(cudaStreamDestroy(s));
}

void events() {
  Buffer<int> x(32);
  cudaStream_t s;
  cudaEvent_t timed, silent, never;
  float ms = -1;
  OK(cudaStreamCreate(&s));
  OK(cudaEventCreate(&timed));
  OK(cudaEventCreate(&never));
  OK(cudaEventCreateWithFlags(&silent, cudaEventDisableTiming));
  EXPECT(cudaErrorInvalidValue, cudaEventCreateWithFlags(&silent, 64));
  OK(cudaEventQuery(never));
  OK(cudaEventSynchronize(never));
  OK(cudaStreamWaitEvent(s, never, 0));
  touch<<<1, 32, 0, s>>>(x.data);
  OK(cudaEventRecord(timed, s));
  cudaError_t e;
  while ((e = cudaEventQuery(timed)) == cudaErrorNotReady) cudaGetLastError();
  OK(e);
  OK(cudaEventElapsedTime(&ms, timed, timed));
  TRUE(ms == 0);
  OK(cudaEventRecord(silent, s));
  OK(cudaEventSynchronize(silent));
  EXPECT(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, timed, silent));
  EXPECT(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, timed, never));
  OK(cudaEventDestroy(never));
  EXPECT(cudaErrorInvalidResourceHandle, cudaEventRecord(never, s));
  EXPECT(cudaErrorInvalidResourceHandle, cudaEventDestroy(never));
  OK(cudaStreamDestroy(s));
}

void captures() {
  Buffer<int> x(32);
  cudaStream_t s, t;
  cudaEvent_t e, outside;
  cudaGraph_t graph;
  cudaStreamCaptureStatus state;
  OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  OK(cudaStreamCreate(&t));
  OK(cudaEventCreate(&e));
  OK(cudaEventCreate(&outside));
  OK(cudaEventRecord(outside, t));
  auto begin = [&] { OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal)); };
  auto invalidated = [&] {
    OK(cudaStreamIsCapturing(s, &state));
    TRUE(state == cudaStreamCaptureStatusInvalidated);
    EXPECT(cudaErrorStreamCaptureInvalidated, cudaMemsetAsync(x.data, 0, 4, s));
    EXPECT(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(s, &graph));
    TRUE(graph == nullptr);
    OK(cudaStreamIsCapturing(s, &state));
    TRUE(state == cudaStreamCaptureStatusNone);
  };
  EXPECT(cudaErrorStreamCaptureUnsupported,
         cudaStreamBeginCapture(cudaStreamLegacy, cudaStreamCaptureModeGlobal));
  EXPECT(cudaErrorIllegalState, cudaStreamEndCapture(s, &graph));
  begin();
  EXPECT(cudaErrorIllegalState, cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
  EXPECT(cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize(s));
  invalidated();
  begin();
  EXPECT(cudaErrorStreamCaptureUnsupported, cudaStreamQuery(s));
  invalidated();
  begin();
  EXPECT(cudaErrorStreamCaptureUnsupported, cudaDeviceSynchronize());
  invalidated();
  begin();
  void* p;
  EXPECT(cudaErrorStreamCaptureUnsupported, cudaMalloc(&p, 4));
  invalidated();
  begin();
  EXPECT(cudaErrorStreamCaptureUnsupported, cudaMemcpy(x.data, &p, 4, cudaMemcpyHostToDevice));
  invalidated();
  begin();
  OK(cudaEventRecord(e, s));
  EXPECT(cudaErrorCapturedEvent, cudaEventSynchronize(e));
  invalidated();
  begin();
  EXPECT(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(s, outside, 0));
  invalidated();
  begin();  // a fork that is never joined
  OK(cudaEventRecord(e, s));
  OK(cudaStreamWaitEvent(t, e, 0));
  touch<<<1, 32, 0, t>>>(x.data);
  EXPECT(cudaErrorStreamCaptureUnjoined, cudaStreamEndCapture(s, &graph));
  begin();  // work of the legacy stream would wait for a blocking stream that captures
  OK(cudaEventRecord(e, s));
  OK(cudaStreamWaitEvent(t, e, 0));
  EXPECT(cudaErrorStreamCaptureImplicit, cudaMemsetAsync(x.data, 0, 4, nullptr));
  invalidated();
  OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
  OK(cudaMalloc(&p, 4));
  OK(cudaStreamEndCapture(s, &graph));
  OK(cudaGraphDestroy(graph));
  OK(cudaStreamDestroy(t));
  OK(cudaStreamDestroy(s));
}

void count_call(void* calls) {
  void* p;
  EXPECT(cudaErrorNotPermitted, cudaMalloc(&p, 4));  // as every call from a host function
  cudaGetLastError();
  ++*static_cast<int*>(calls);
}

void destroyed_while_capturing() {
  Buffer<int> x(32);
  cudaStream_t s, t, origin;
  cudaEvent_t e;
  cudaGraph_t graph;
  cudaStreamCaptureStatus state;
  OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  OK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
  OK(cudaEventCreate(&e));
  for (bool joined : {false, true}) {  // a fork whose stream is destroyed meanwhile
    cudaStream_t forked;
    OK(cudaStreamCreate(&forked));
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    OK(cudaEventRecord(e, s));
    OK(cudaStreamWaitEvent(forked, e, 0));
    touch<<<1, 32, 0, forked>>>(x.data);
    OK(cudaEventRecord(e, forked));
    if (joined) OK(cudaStreamWaitEvent(s, e, 0));
    OK(cudaStreamDestroy(forked));
    EXPECT(joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined, cudaStreamEndCapture(s, &graph));
    if (joined) OK(cudaGraphDestroy(graph));
  }
  OK(cudaStreamCreate(&origin));  // the one on which the capture was begun
  OK(cudaStreamBeginCapture(origin, cudaStreamCaptureModeGlobal));
  OK(cudaEventRecord(e, origin));
  OK(cudaStreamWaitEvent(t, e, 0));
  OK(cudaStreamDestroy(origin));
  OK(cudaStreamIsCapturing(t, &state));
  TRUE(state == cudaStreamCaptureStatusNone);
}

// What is captured is done when the graph is launched, not before.
void captured_work() {
  Buffer<int> x(32);
  cudaStream_t s;
  cudaGraph_t graph;
  int called = 0;
  OK(cudaStreamCreate(&s));
  OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  OK(cudaMemsetAsync(x.data, 0, 32 * 4, s));
  touch<<<1, 32, 0, s>>>(x.data);
  OK(cudaLaunchHostFunc(s, count_call, &called));
  OK(cudaStreamEndCapture(s, &graph));
  size_t nodes = 0, edges = 0, roots = 0;
  OK(cudaGraphGetNodes(graph, nullptr, &nodes));
  OK(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &edges));
  OK(cudaGraphGetRootNodes(graph, nullptr, &roots));
  TRUE(nodes == 3 && edges == 2 && roots == 1 && called == 0);
  cudaGraphExec_t exec;
  OK(cudaGraphInstantiate(&exec, graph, 0));
  OK(cudaGraphLaunch(exec, s));
  OK(cudaStreamSynchronize(s));
  TRUE(called == 1 && x.download()[31] == 1);
  OK(cudaGraphExecDestroy(exec));
  EXPECT(cudaErrorInvalidValue, cudaGraphLaunch(exec, s));
  OK(cudaStreamDestroy(s));
}

void graphs() {
  Buffer<int> x(32), y(32);
  x.zero();
  y.zero();
  cudaGraph_t graph, copy;
  cudaGraphNode_t a, b, found;
  cudaGraphExec_t exec;
  OK(cudaGraphCreate(&graph, 0));
  void* arguments[] = {&x.data};
  cudaKernelNodeParams kernel = {};
  kernel.func = reinterpret_cast<void*>(touch);
  kernel.gridDim = 1, kernel.blockDim = 32, kernel.kernelParams = arguments;
  OK(cudaGraphAddKernelNode(&a, graph, nullptr, 0, &kernel));
  OK(cudaGraphAddMemcpyNode1D(&b, graph, &a, 1, y.data, x.data, 128, cudaMemcpyDeviceToDevice));
  cudaGraphNodeType type;
  OK(cudaGraphNodeGetType(b, &type));
  TRUE(type == cudaGraphNodeTypeMemcpy);
  OK(cudaGraphAddDependencies(graph, &b, &a, nullptr, 1));
  EXPECT(cudaErrorInvalidValue, cudaGraphInstantiate(&exec, graph, 0));  // a cycle
  OK(cudaGraphRemoveDependencies(graph, &b, &a, nullptr, 1));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  OK(cudaGraphLaunch(exec, nullptr));
  arguments[0] = &y.data;
  OK(cudaGraphExecKernelNodeSetParams(exec, a, &kernel));
  cudaHostNodeParams host = {[](void*) {}, nullptr};
  EXPECT(cudaErrorInvalidValue, cudaGraphExecHostNodeSetParams(exec, a, &host));
  OK(cudaGraphNodeSetEnabled(exec, b, 0));
  OK(cudaGraphLaunch(exec, nullptr));
  TRUE(x.download()[5] == 1 && y.download()[5] == 2);
  OK(cudaGraphClone(&copy, graph));
  OK(cudaGraphNodeFindInClone(&found, b, copy));
  cudaGraphExecUpdateResultInfo info;
  OK(cudaGraphExecUpdate(exec, copy, &info));
  OK(cudaGraphDestroyNode(found));
  EXPECT(cudaErrorGraphExecUpdateFailure, cudaGraphExecUpdate(exec, copy, &info));
  TRUE(info.result == cudaGraphExecUpdateErrorTopologyChanged);
  OK(cudaGraphLaunch(exec, nullptr));
  TRUE(x.download()[5] == 2 && y.download()[5] == 2);
  OK(cudaGraphDestroy(graph));
  EXPECT(cudaErrorInvalidValue, cudaGraphDestroy(graph));
  OK(cudaGraphDestroy(copy));
  OK(cudaGraphExecDestroy(exec));
}

void memory() {
  void *p, *q, *host, *inside;
  size_t pitch = 0;
  static int registered[100];
  OK(cudaMallocPitch(&p, &pitch, 100, 3));
  TRUE(pitch == 512);
  OK(cudaMemset2D(p, pitch, 7, 100, 3));
  char rows[300] = {};
  OK(cudaMemcpy2D(rows, 100, p, pitch, 100, 3, cudaMemcpyDefault));
  TRUE(rows[299] == 7);
  EXPECT(cudaErrorInvalidPitchValue, cudaMemcpy2D(rows, 50, p, pitch, 100, 3, cudaMemcpyDefault));
  EXPECT(cudaErrorInvalidValue, cudaMemcpy(p, rows, 3 * 512 + 1, cudaMemcpyHostToDevice));
  inside = static_cast<char*>(p) + 256;
  EXPECT(cudaErrorInvalidValue, cudaFree(inside));
  EXPECT(cudaErrorInvalidValue, cudaFreeHost(p));
  EXPECT(cudaErrorInvalidValue, cudaFreeAsync(p, nullptr));
  OK(cudaFree(p));
  EXPECT(cudaErrorInvalidValue, cudaFree(p));  // twice
  EXPECT(cudaErrorInvalidValue, cudaMemset(p, 0, 1));
  OK(cudaFree(nullptr));
  OK(cudaHostAlloc(&host, 100, cudaHostAllocMapped));
  OK(cudaHostGetDevicePointer(&q, host, 0));
  TRUE(q == host);
  OK(cudaFreeHost(host));
  EXPECT(cudaErrorInvalidValue, cudaFreeHost(host));
  EXPECT(cudaErrorInvalidValue, cudaHostGetDevicePointer(&q, registered, 0));
  OK(cudaHostRegister(registered, sizeof registered, cudaHostRegisterMapped));
  EXPECT(cudaErrorHostMemoryAlreadyRegistered, cudaHostRegister(registered, 4, 0));
  OK(cudaHostGetDevicePointer(&q, registered, 0));
  cudaPointerAttributes where;
  OK(cudaPointerGetAttributes(&where, registered));
  TRUE(where.type == cudaMemoryTypeHost);
  OK(cudaHostUnregister(registered));
  EXPECT(cudaErrorHostMemoryNotRegistered, cudaHostUnregister(registered));
  OK(cudaPointerGetAttributes(&where, registered));
  TRUE(where.type == cudaMemoryTypeUnregistered);
  cudaGetLastError();
}

void pools() {
  cudaMemPool_t pool;
  uint64_t threshold = 12345, got = 0;
  void* p;
  cudaStream_t s, t;
  OK(cudaStreamCreate(&s));
  OK(cudaStreamCreate(&t));
  OK(cudaDeviceGetDefaultMemPool(&pool, 0));
  OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
  OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &got));
  TRUE(got == threshold);
  OK(cudaMallocFromPoolAsync(&p, 1 << 20, pool, s));
  OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &got));
  TRUE(got == 1 << 20);
  touch<<<1, 32, 0, s>>>(static_cast<int*>(p));
  REPORTED("use-after-free", cudaFreeAsync(p, t));  // s may still use it
  OK(cudaMallocAsync(&p, 128, s));
  REPORTED("use-before-allocation", cudaMemsetAsync(p, 0, 128, t));
  OK(cudaMallocAsync(&p, 128, s));
  OK(cudaFreeAsync(p, s));
  EXPECT(cudaErrorInvalidValue, cudaFreeAsync(p, s));
  EXPECT(cudaErrorInvalidValue, cudaMemsetAsync(p, 0, 128, s));
  Buffer<int> x(32);
  OK(cudaMemsetAsync(x.data, 0, 128, s));
  REPORTED("stream-race", cudaMemsetAsync(x.data, 1, 128, t));
  OK(cudaMemsetAsync(x.data, 0, 64, s));
  OK(cudaMemsetAsync(x.data + 16, 1, 64, t));  // other bytes
  OK(cudaStreamDestroy(s));
  OK(cudaStreamDestroy(t));
  cudaGetLastError();
}

void device() {
  cudaDeviceProp p;
  OK(cudaGetDeviceProperties(&p, 0));
  EXPECT(cudaErrorInvalidDevice, cudaGetDeviceProperties(&p, 1));
  auto attribute = [](cudaDeviceAttr a) {
    int v = -7;
    OK(cudaDeviceGetAttribute(&v, a, 0));
    return v;
  };
  int unknown = 0, v;
  for (int a = 1; a < cudaDevAttrMax; ++a)
    unknown += cudaDeviceGetAttribute(&v, static_cast<cudaDeviceAttr>(a), 0) != cudaSuccess;
  TRUE(unknown == 23);  // numbers that the header does not name, or reserves
  cudaGetLastError();
  TRUE(attribute(cudaDevAttrComputeMode) == cudaComputeModeDefault);
  TRUE(p.major == 9 && attribute(cudaDevAttrComputeCapabilityMajor) == 9);
  TRUE(p.multiProcessorCount == attribute(cudaDevAttrMultiProcessorCount));
  TRUE(p.maxThreadsDim[2] == 64 && p.maxGridSize[1] == 65535 && p.clusterLaunch == 1);
  TRUE(p.sharedMemPerBlockOptin == 232448 && p.maxTexture2DLinear[2] == 2097120);
  TRUE(cudaGetErrorName(cudaErrorStreamCaptureWrongThread) ==
       std::string("cudaErrorStreamCaptureWrongThread"));
  TRUE(cudaGetErrorString(cudaErrorIllegalAddress) ==
       std::string("an illegal memory access was encountered"));
  TRUE(cudaGetErrorName(static_cast<cudaError_t>(12345)) == std::string("unrecognized error code"));
  size_t limit = 0;
  OK(cudaDeviceSetLimit(cudaLimitStackSize, 4096));
  OK(cudaDeviceGetLimit(&limit, cudaLimitStackSize));
  TRUE(limit == 4096);
}

const char* const kPtx = R"(
.version 8.0
.target sm_90a
.address_size 64
.visible .entry set(.param .u64 to, .param .u32 v) {
  .reg .b64 %a; .reg .b32 %v;
  ld.param.u64 %a, [to];
  ld.param.u32 %v, [v];
  st.global.b32 [%a], %v;
  ret;
})";

void driver() {
  CUmodule module;
  CUfunction set;
  CUdeviceptr p;
  int value = 5, got = 0;
  auto ok = [](CUresult r) { TRUE(r == CUDA_SUCCESS); };
  ok(cuInit(0));
  ok(cuModuleLoadData(&module, kPtx));
  TRUE(cuModuleGetFunction(&set, module, "absent") == CUDA_ERROR_NOT_FOUND);
  ok(cuModuleGetFunction(&set, module, "set"));
  ok(cuMemAlloc(&p, 4));
  void* arguments[] = {&p, &value};
  ok(cuLaunchKernel(set, 1, 1, 1, 1, 1, 1, 0, nullptr, arguments, nullptr));
  ok(cuMemcpyDtoH(&got, p, 4));
  TRUE(got == 5);
  struct {
    CUdeviceptr p;
    int v;
  } block = {p, 6};
  size_t bytes = sizeof block;
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &block, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                   CU_LAUNCH_PARAM_END};
  ok(cuLaunchKernel(set, 1, 1, 1, 1, 1, 1, 0, nullptr, nullptr, extra));
  ok(cuMemcpyDtoH(&got, p, 4));
  TRUE(got == 6);
  TRUE(cuLaunchKernel(set, 1, 1, 1, 2048, 1, 1, 0, nullptr, arguments, nullptr) ==
       CUDA_ERROR_INVALID_VALUE);
  ok(cuMemFree(p));
  TRUE(cuMemFree(p) == CUDA_ERROR_INVALID_VALUE);
  ok(cuModuleUnload(module));
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  OK(cudaGetDriverEntryPointByVersion("cuMemAlloc", &entry, 12000, cudaEnableDefault, &found));
  TRUE(entry == reinterpret_cast<void*>(cuMemAlloc));
  cudaGetLastError();
}

template <int MUTANT>
int run() {
  l4k_emu_configure_text("print=0");  // what is reported is expected
  streams();
  events();
  captures();
  destroyed_while_capturing();
  captured_work();
  graphs();
  memory();
  pools();
  device();
  driver();
  assertions();
  if (!failures) std::printf("PASS\n");
  return failures != 0;
}
MAIN(0)
