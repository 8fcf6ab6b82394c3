// Host side of the emulator's test kernels: buffers, tensor maps, launches, the verdict.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

// Exit status 3: the runtime refused something or a kernel was stopped.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("ERROR %s: %s\n", what, cudaGetErrorString(error));
  std::exit(3);
}
#define CHECK(call) check((call), #call)

template <typename T>
struct Buffer {
  explicit Buffer(size_t count) : size(count) { CHECK(cudaMalloc(&data, count * sizeof(T))); }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) {
    CHECK(cudaMemcpy(data, host.data(), size * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> download() const {
    std::vector<T> host(size);
    CHECK(cudaMemcpy(host.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  void zero() { CHECK(cudaMemset(data, 0, size * sizeof(T))); }
  T* data = nullptr;
  size_t size;
};

// Small integers: exact in every type and in every order of summation.
inline int small_int(size_t i) { return static_cast<int>((i * 2654435761u >> 13) % 7) - 3; }
inline std::vector<float> small_floats(size_t n, size_t salt = 0) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<float>(small_int(i + salt));
  return v;
}
inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}
// To the nearest bf16, where to_bf16 takes what is one already.
inline float rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits += 0x7fff + (bits >> 16 & 1);
  bits &= 0xffff0000;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline std::vector<uint16_t> to_bf16(const std::vector<float>& x) {
  std::vector<uint16_t> v(x.size());
  for (size_t i = 0; i < x.size(); ++i) v[i] = to_bf16(x[i]);
  return v;
}
inline std::vector<uint8_t> to_e4m3(const std::vector<float>& x) {
  static const uint8_t kCode[4] = {0x00, 0x38, 0x40, 0x44};  // 0, 1, 2, 3
  std::vector<uint8_t> v(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    v[i] = kCode[static_cast<int>(x[i] < 0 ? -x[i] : x[i])] | (x[i] < 0 ? 0x80 : 0);
  return v;
}

inline CUtensorMap tensor_map(CUtensorMapDataType type, void* data, int columns, int rows,
                              int row_bytes, int box_columns, int box_rows,
                              CUtensorMapSwizzle swizzle) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &found));
  CUtensorMap map;
  cuuint64_t extent[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  cuuint64_t stride[1] = {static_cast<cuuint64_t>(row_bytes)};
  cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)};
  cuuint32_t step[2] = {1, 1};
  CUresult result = reinterpret_cast<Encode>(entry)(
      &map, type, 2, data, extent, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
      CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::printf("ERROR cuTensorMapEncodeTiled: %d\n", static_cast<int>(result));
    std::exit(3);
  }
  return map;
}

struct Launch {
  dim3 grid, block;
  int shared = 0;
  int cluster = 1;
  bool chained = false;  // may start before its predecessor in the stream has ended
};
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const Launch& how, Args... args) {
  cudaLaunchAttribute attribute[2];
  int n = 0;
  if (how.cluster > 1) {
    attribute[n].id = cudaLaunchAttributeClusterDimension;
    attribute[n].val.clusterDim = {static_cast<unsigned>(how.cluster), 1, 1};
    ++n;
  }
  if (how.chained) {
    attribute[n].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[n].val.programmaticStreamSerializationAllowed = 1;
    ++n;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = static_cast<size_t>(how.shared);
  config.attrs = attribute;
  config.numAttrs = static_cast<unsigned>(n);
  CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}
template <typename Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <typename T>
int verdict(const std::vector<T>& got, const std::vector<T>& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i]) continue;
    std::printf("FAIL at %zu: got %g, want %g\n", i, static_cast<double>(got[i]),
                static_cast<double>(want[i]));
    return 1;
  }
  std::printf("PASS\n");
  return 0;
}
// c[m][n] = sum over k of a[m][k] * b[n][k]
inline std::vector<float> matmul(const std::vector<float>& a, const std::vector<float>& b, int m,
                                 int n, int k) {
  std::vector<float> c(static_cast<size_t>(m) * n);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j)
      for (int l = 0; l < k; ++l) c[i * n + j] += a[i * k + l] * b[j * k + l];
  return c;
}

// A main that runs the mutant named by its argument. One program holds all mutants of a kernel:
// compiling them together takes little longer than compiling one.
#ifdef ORIGINAL_ONLY
#define MAIN(count) \
  int main() { return run<0>(); }
#else
#define MAIN(count)                                                         \
  template <int... k>                                                       \
  int run_one(int mutant, std::integer_sequence<int, k...>) {               \
    int status = 2;                                                         \
    (static_cast<void>(k == mutant ? status = run<k>() : 0), ...);          \
    return status;                                                          \
  }                                                                         \
  int main(int argc, char** argv) {                                         \
    int mutant = argc > 1 ? std::atoi(argv[1]) : 0;                         \
    return run_one(mutant, std::make_integer_sequence<int, (count) + 1>{}); \
  }
#endif
