// What the microbenchmarks share: options, JSON lines, checks, clocks, bounded waits, chains of
// launches. A program ends with 0 if its values were right, 1 if not, 2 for a bad option, 3 for an
// error of the runtime (which a wait that lasts too long becomes, since it traps).
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "host/launch.h"
#include "host/tensor_map.h"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"

namespace micro {

inline void check(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(3);
}
#define MICRO_CHECK(call) micro::check((call), #call, __LINE__)

inline void expect(bool right, const std::string& what) {
  if (right) return;
  std::fprintf(stderr, "wrong: %s\n", what.c_str());
  std::exit(1);
}

// Ends with the first error of the kernels launched so far.
inline void finish() {
  MICRO_CHECK(cudaGetLastError());
  MICRO_CHECK(cudaDeviceSynchronize());
}

// Everything runs in one stream, so that what fills memory comes before what reads it.
inline cudaStream_t stream() {
  static cudaStream_t made = [] {
    cudaStream_t s;
    MICRO_CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
  }();
  return made;
}

// --small: sizes for the emulator, whose values are right and whose times mean nothing.
inline bool is_small(int argc, char** argv) {
  bool small = argc == 2 && std::strcmp(argv[1], "--small") == 0;
  if (argc > 1 && !small) {
    std::fprintf(stderr, "usage: %s [--small]\n", argv[0]);
    std::exit(2);
  }
  return small;
}

inline void print(const std::string& name, double value, const char* unit,
                  const std::string& more = "") {
  std::printf("{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"%s%s}\n", name.c_str(), value,
              unit, more.empty() ? "" : ", ", more.c_str());
  std::fflush(stdout);
}

template <typename T>
T median(std::vector<T> values) {
  if (values.empty()) return T{};
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Device memory, zero at first; freed by the end of the process.
template <typename T>
struct Buffer {
  explicit Buffer(size_t count) : size(count) {
    MICRO_CHECK(cudaMalloc(&data, count * sizeof(T)));
    MICRO_CHECK(cudaMemset(data, 0, count * sizeof(T)));
    finish();
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) {
    MICRO_CHECK(cudaMemcpy(data, host.data(), size * sizeof(T), cudaMemcpyHostToDevice));
    finish();
  }
  std::vector<T> host() const {
    finish();
    std::vector<T> values(size);
    MICRO_CHECK(cudaMemcpy(values.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  T* data = nullptr;
  size_t size;
};

// SM cycles, and nanoseconds of a clock that no frequency changes.
__device__ __forceinline__ int64_t cycles() {
  int64_t now;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
  return now;
}

__device__ __forceinline__ int64_t nanoseconds() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

constexpr int64_t kPatience = 1'000'000'000;  // ns; in the emulator, instructions

// Traps when what a thread waits for is a second late.
struct Patience {
  int64_t end = nanoseconds() + kPatience;
  __device__ __forceinline__ void check() const {
    if (nanoseconds() > end) __trap();
  }
};

__device__ __forceinline__ bool try_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, done;\n\t}"
      : "=r"(done)
      : "r"(l4k::ptx::smem_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// The same without suspending the thread.
__device__ __forceinline__ bool test_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, done;\n\t}"
      : "=r"(done)
      : "r"(l4k::ptx::smem_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void wait(uint64_t* barrier, uint32_t parity) {
  if (try_wait(barrier, parity)) return;
  Patience patience;
  while (!try_wait(barrier, parity)) patience.check();
}

// A cluster barrier that orders no memory.
__device__ __forceinline__ void cluster_sync_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// Hashed words: random to DRAM and power, yet known.
static __global__ void fill_words(uint32_t* words, size_t count) {
  size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u;
    words[i] = (x ^ x >> 15) * 2246822519u;
  }
}

// The sum of each tile's words, by ordinary loads: what tensor copies are held against.
static __global__ void sum_tiles(const uint32_t* words, int words_per_tile, uint32_t* sums) {
  __shared__ uint32_t sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  uint32_t own = 0;
  for (int i = threadIdx.x; i < words_per_tile; i += blockDim.x)
    own += words[size_t{blockIdx.x} * words_per_tile + i];
  atomicAdd(&sum, own);
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Rows of 128 bytes, in boxes of `box_rows` of them: each box is contiguous in memory.
constexpr int kRowBytes = 128;

struct Rows {
  Rows(int64_t row_count, bool hashed) : words(row_count * kRowBytes / 4), rows(row_count) {
    if (hashed) fill_words<<<1 + rows / 4096, 256, 0, stream()>>>(words.data, words.size);
    finish();
  }
  CUtensorMap map(int box_rows) const {
    CUtensorMap result;
    l4k::TensorMapSpec spec{.type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                            .rank = 2,
                            .base = words.data,
                            .shape = {kRowBytes, uint64_t(rows)},
                            .strides = {kRowBytes},
                            .box = {kRowBytes, uint32_t(box_rows)}};
    MICRO_CHECK(l4k::make_tensor_map(spec, &result));
    return result;
  }
  std::vector<uint32_t> tile_sums(int rows_per_tile) const {
    Buffer<uint32_t> sums(rows / rows_per_tile);
    sum_tiles<<<static_cast<int>(sums.size), 128, 0, stream()>>>(
        words.data, rows_per_tile * kRowBytes / 4, sums.data);
    return sums.host();
  }
  Buffer<uint32_t> words;
  int64_t rows;
};

// Median microseconds between two events around `enqueue()`, after one call that does not count
// (with 0 repeats, that call alone).
template <typename Enqueue>
double event_us(int repeats, Enqueue&& enqueue) {
  cudaEvent_t begin, end;
  MICRO_CHECK(cudaEventCreate(&begin));
  MICRO_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i <= repeats; ++i) {
    MICRO_CHECK(cudaEventRecord(begin, stream()));
    enqueue();
    MICRO_CHECK(cudaEventRecord(end, stream()));
    MICRO_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    MICRO_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) times.push_back(ms * 1e3f);
  }
  MICRO_CHECK(cudaEventDestroy(begin));
  MICRO_CHECK(cudaEventDestroy(end));
  return median(times);
}

// The same around a graph captured from `enqueue()`. The emulator has no graphs: there the launches
// go into the stream themselves.
template <typename Enqueue>
double graph_us(int repeats, Enqueue&& enqueue) {
#ifdef L4K_EMULATED
  return event_us(repeats, enqueue);
#else
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  MICRO_CHECK(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed));
  enqueue();
  MICRO_CHECK(cudaStreamEndCapture(stream(), &graph));
  MICRO_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  MICRO_CHECK(cudaGraphUpload(executable, stream()));
  double us = event_us(repeats, [&] { MICRO_CHECK(cudaGraphLaunch(executable, stream())); });
  MICRO_CHECK(cudaGraphExecDestroy(executable));
  MICRO_CHECK(cudaGraphDestroy(graph));
  return us;
#endif
}

// Microseconds that one more launch adds: the slope between a short chain and a long one, so that
// starting a graph does not count. `enqueue(i)` makes launch i.
struct Chain {
  int few, many, repeats;
  bool graph = true;

  template <typename Enqueue>
  double us(Enqueue&& enqueue) const {
    auto time = [&](int launches) {
      auto all = [&] {
        for (int i = 0; i < launches; ++i) enqueue(i);
      };
      return graph ? graph_us(repeats, all) : event_us(repeats, all);
    };
    double less = time(few), more = time(many);
    return (more - less) / (many - few);
  }
};

}  // namespace micro
