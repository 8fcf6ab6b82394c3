// Memory with an owner and an end: freed on the host, in a stream, by a graph, by a caching allocator
// that hands a block out again.
//
// mutant | report | what
// 1 | use-after-free | cudaFree before the launch
// 2 | use-after-free | cudaFreeAsync before the launch, on the same stream
// 3 | use-before-allocation | another stream than the allocation's, and no event between
// 4 | use-after-free | a graph is launched after its buffer was freed
// 5 | stream-race | a block is handed out again while another stream may still read it
// 6 | use-after-free | a tensor that was given back is used by a later launch
// 7 | use-after-free | freed memory whose place a younger allocation would have taken
// 8 | use-before-allocation | a block is used on a stream that does not wait for its owner's
#include "device.cuh"
#include "host.h"

// As in l4k_emulator.h.
extern "C" {
void l4k_emu_register_range(const void*, size_t);
void l4k_emu_allocate_range(const void*, size_t, void*);
void l4k_emu_end_range(const void*, size_t, const char*);
void l4k_emu_unregister_range(const void*, size_t);
}

constexpr int kCount = 512;
constexpr size_t kBytes = kCount * sizeof(int);

template <int MUTANT>
__global__ void store(int* out, int v) {
  out[threadIdx.x] = v;  // @3 @5 @7
}
template <int MUTANT>
__global__ void add(const int* in, int* out) {
  int v = in[threadIdx.x];  // @1 @2 @4 @6 @8
  out[threadIdx.x] = v + 1;
}

inline void order(cudaStream_t first, cudaStream_t second) {
  cudaEvent_t event;
  CHECK(cudaEventCreate(&event));
  CHECK(cudaEventRecord(event, first));
  CHECK(cudaStreamWaitEvent(second, event, 0));
  CHECK(cudaEventDestroy(event));
}

template <int MUTANT>
void freed(int* out, cudaStream_t s, cudaStream_t t) {
  int *a, *b, *c;
  CHECK(cudaMalloc(&a, kBytes));
  CHECK(cudaMemset(a, 0, kBytes));
  CHECK(cudaDeviceSynchronize());
  ONLY(1) CHECK(cudaFree(a));
  add<MUTANT><<<1, kCount, 0, s>>>(a, out);
  UNLESS(1) CHECK(cudaFree(a));
  CHECK(cudaMalloc(&c, kBytes));
  store<MUTANT><<<1, kCount, 0, s>>>(PICK(7, c, a), 1);
  CHECK(cudaFree(c));
  CHECK(cudaMallocAsync(&b, kBytes, s));
  UNLESS(3) order(s, t);
  store<MUTANT><<<1, kCount, 0, t>>>(b, 2);
  order(t, s);
  ONLY(2) CHECK(cudaFreeAsync(b, s));
  add<MUTANT><<<1, kCount, 0, s>>>(b, out);
  UNLESS(2) CHECK(cudaFreeAsync(b, s));
}

template <int MUTANT>
void in_graph(int* out, cudaStream_t s) {
  int* a;
  CHECK(cudaMalloc(&a, kBytes));
  CHECK(cudaMemset(a, 0, kBytes));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
  int* temporary;
  CHECK(cudaMallocAsync(&temporary, kBytes, s));
  add<MUTANT><<<1, kCount, 0, s>>>(a, temporary);
  add<MUTANT><<<1, kCount, 0, s>>>(temporary, out);
  CHECK(cudaFreeAsync(temporary, s));
  CHECK(cudaStreamEndCapture(s, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaGraphLaunch(exec, s));
  ONLY(4) CHECK(cudaFree(a));
  CHECK(cudaGraphLaunch(exec, s));
  UNLESS(4) CHECK(cudaFree(a));
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
}

// What torch's allocator does with a block of stream s that stream t used as well.
template <int MUTANT>
void cached(int* out, cudaStream_t s, cudaStream_t t) {
  std::vector<int> block(kCount);
  l4k_emu_allocate_range(block.data(), kBytes, s);
  UNLESS(8) store<MUTANT><<<1, kCount, 0, s>>>(block.data(), 1);
  UNLESS(8) order(s, t);
  ONLY(6) l4k_emu_end_range(block.data(), kBytes, "a tensor");
  add<MUTANT><<<1, kCount, 0, t>>>(block.data(), out);
  UNLESS(6) l4k_emu_end_range(block.data(), kBytes, "a tensor");
  UNLESS(5) order(t, s);
  l4k_emu_allocate_range(block.data(), kBytes, s);
  store<MUTANT><<<1, kCount, 0, s>>>(block.data(), 3);
  l4k_emu_unregister_range(block.data(), kBytes);
  l4k_emu_unregister_range(block.data(), kBytes);
  CHECK(cudaDeviceSynchronize());
}

template <int MUTANT>
int run() {
  Buffer<int> out(kCount);
  cudaStream_t s, t;
  CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  CHECK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
  freed<MUTANT>(out.data, s, t);
  in_graph<MUTANT>(out.data, s);
  CHECK(cudaDeviceSynchronize());
  cached<MUTANT>(out.data, s, t);
  CHECK(cudaDeviceSynchronize());
  return verdict(out.download(), std::vector<int>(kCount, 2));
}
MAIN(8)
