// Work on several streams: producers and consumers ordered by events, by the default stream, by the
// host, and by the edges of graphs that are built by hand or captured.
//
// mutant | report | what
// 1 | stream-race | a consumer on another stream, and no event between
// 2 | stream-race | the input is written again while another stream may still read it
// 3 | stream-race | the event is recorded before the kernel that it stands for
// 4 | stream-race | a non-blocking stream counts on the default stream
// 5 | stream-race | a copy to page-locked memory is not waited for, and a kernel writes there
// 6 | stream-race | a graph without the edge from its memset to its kernel
// 7 | stream-race | a captured fork without the wait for its event
// 8 | stream-race | another graph is launched on another stream while this one may run
// 9 | stream-race | the host waits for the wrong stream
#include "device.cuh"
#include "host.h"

constexpr int kCount = 512;

// The kernels of one step each, so that a report's line names the step.
template <int MUTANT>
__global__ void produce(int* out, int v) {
  out[threadIdx.x] = v + static_cast<int>(threadIdx.x);  // @2 @5 @8
}
template <int MUTANT>
__global__ void add_one(const int* in, int* out) {
  int v = in[threadIdx.x];  // @1 @3 @4 @6 @7 @9
  out[threadIdx.x] = v + 1;
}

struct Stream {
  explicit Stream(unsigned flags = cudaStreamNonBlocking) {
    CHECK(cudaStreamCreateWithFlags(&s, flags));
  }
  ~Stream() { CHECK(cudaStreamDestroy(s)); }
  operator cudaStream_t() const { return s; }
  cudaStream_t s;
};

struct Event {
  Event() { CHECK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming)); }
  ~Event() { CHECK(cudaEventDestroy(e)); }
  operator cudaEvent_t() const { return e; }
  cudaEvent_t e;
};

inline void order(cudaStream_t first, cudaStream_t second) {
  Event event;
  CHECK(cudaEventRecord(event, first));
  CHECK(cudaStreamWaitEvent(second, event, 0));
}

template <int MUTANT>
void by_events(int* a, int* b) {
  Stream s, t;
  Event done;
  ONLY(3) CHECK(cudaEventRecord(done, s));
  produce<MUTANT><<<1, kCount, 0, s>>>(a, 1);
  UNLESS(3) CHECK(cudaEventRecord(done, s));
  UNLESS(1) CHECK(cudaStreamWaitEvent(t, done, 0));
  add_one<MUTANT><<<1, kCount, 0, t>>>(a, b);
  UNLESS(2) order(t, s);
  produce<MUTANT><<<1, kCount, 0, s>>>(a, 5);
  CHECK(cudaDeviceSynchronize());
}

// The legacy default stream is ordered with blocking streams only.
template <int MUTANT>
void by_default_stream(int* a, int* b) {
  Stream s(PICK(4, cudaStreamDefault, cudaStreamNonBlocking));
  produce<MUTANT><<<1, kCount>>>(a, 1);
  add_one<MUTANT><<<1, kCount, 0, s>>>(a, b);
  produce<MUTANT><<<1, kCount>>>(a, 5);
  CHECK(cudaDeviceSynchronize());
}

template <int MUTANT>
void by_host(int* a, int* b) {
  Stream s, t;
  int* host = nullptr;
  CHECK(cudaHostAlloc(&host, kCount * sizeof(int), cudaHostAllocDefault));
  produce<MUTANT><<<1, kCount, 0, s>>>(a, 1);
  CHECK(cudaStreamSynchronize(PICK(9, s, t)));
  add_one<MUTANT><<<1, kCount, 0, t>>>(a, b);
  CHECK(cudaMemcpyAsync(host, b, kCount * sizeof(int), cudaMemcpyDeviceToHost, t));
  Event copied;
  CHECK(cudaEventRecord(copied, t));
  UNLESS(5)
    while (cudaEventQuery(copied) == cudaErrorNotReady) {
    }
  produce<MUTANT><<<1, kCount, 0, s>>>(host, 7);
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaFreeHost(host));
}

// zero ──> add_one(a, b)
template <int MUTANT>
void by_edges(int* a, int* b) {
  cudaGraph_t graph;
  cudaGraphNode_t zero, add;
  CHECK(cudaGraphCreate(&graph, 0));
  cudaMemsetParams fill = {};
  fill.dst = a, fill.elementSize = 4, fill.width = kCount, fill.height = 1;
  CHECK(cudaGraphAddMemsetNode(&zero, graph, nullptr, 0, &fill));
  void* arguments[] = {&a, &b};
  cudaKernelNodeParams kernel = {};
  kernel.func = reinterpret_cast<void*>(add_one<MUTANT>);
  kernel.gridDim = 1, kernel.blockDim = kCount, kernel.kernelParams = arguments;
  CHECK(cudaGraphAddKernelNode(&add, graph, &zero, PICK(6, 1, 0), &kernel));
  cudaGraphExec_t exec;
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  Stream s, t;
  for (int i = 0; i < 3; ++i) CHECK(cudaGraphLaunch(exec, s));
  UNLESS(8) order(s, t);
  produce<MUTANT><<<1, kCount, 0, t>>>(a, 1);
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
}

template <int MUTANT>
void by_capture(int* a, int* b, int* c) {
  Stream s, t;
  Event forked, joined, produced;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
  CHECK(cudaEventRecord(forked, s));
  produce<MUTANT><<<1, kCount, 0, s>>>(a, 10);
  CHECK(cudaEventRecord(produced, s));
  CHECK(cudaStreamWaitEvent(t, forked, 0));
  UNLESS(7) CHECK(cudaStreamWaitEvent(t, produced, 0));
  add_one<MUTANT><<<1, kCount, 0, t>>>(a, b);
  CHECK(cudaEventRecord(joined, t));
  CHECK(cudaStreamWaitEvent(s, joined, 0));
  add_one<MUTANT><<<1, kCount, 0, s>>>(b, c);
  CHECK(cudaStreamEndCapture(s, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  CHECK(cudaGraphLaunch(exec, s));
  CHECK(cudaStreamSynchronize(s));
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
}

template <int MUTANT>
int run() {
  Buffer<int> a(kCount), b(kCount), c(kCount);
  by_events<MUTANT>(a.data, b.data);
  by_default_stream<MUTANT>(a.data, b.data);
  by_host<MUTANT>(a.data, b.data);
  by_edges<MUTANT>(a.data, b.data);
  by_capture<MUTANT>(a.data, b.data, c.data);
  std::vector<int> want(kCount);
  for (int i = 0; i < kCount; ++i) want[i] = 12 + i;
  return verdict(c.download(), want);
}
MAIN(9)
