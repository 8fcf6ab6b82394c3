// Calls: through tables of pointers that differ from lane to lane, of virtual functions, of a
// function that calls itself; and shared variables of the module, of functions and of kernels.
//
// mutant | report | what
// 1 | bad-call | an index past the table, where no function is
// 2 | bad-call | a pointer of another type than the function
// 3 | launch | a kernel that uses two large shared variables
#include "device.cuh"
#include "host.h"

using Unary = int (*)(int);
__device__ __noinline__ int twice(int x) { return 2 * x; }
__device__ __noinline__ int square(int x) { return x * x; }
__device__ __noinline__ int negate(int x) { return -x; }
__device__ __noinline__ float half_of(float x, float y) { return (x + y) / 2; }
__device__ Unary table[4] = {twice, square, negate};

struct Shape {
  __device__ virtual int area(int scale) const = 0;
};
struct Square : Shape {
  __device__ explicit Square(int side) : side(side) {}
  __device__ int area(int scale) const override { return side * side * scale; }
  int side;
};
struct Rectangle : Shape {
  __device__ Rectangle(int a, int b) : a(a), b(b) {}
  __device__ int area(int scale) const override { return a * b * scale; }
  int a, b;
};

__device__ __noinline__ int ackermann(int m, int n) {
  if (m == 0) return n + 1;
  return ackermann(m - 1, n == 0 ? 1 : ackermann(m, n - 1));
}

template <int MUTANT>
__global__ void call(const int* in, int* out, Unary given) {
  int i = static_cast<int>(threadIdx.x), x = in[i];
  int v = table[PICK(1, i % 3, i % 4)](x);  // @1
  v += 1000 * given(x);                     // @2
  Square square_shape(x);
  Rectangle rectangle(x, 3);
  const Shape* shape = i % 2 ? static_cast<const Shape*>(&square_shape) : &rectangle;
  v += 10000 * shape->area(2);
  out[i] = v + ackermann(i % 3, x & 3);
}

// Shared variables: `common` belongs to a function that two kernels call, the large ones to one
// kernel each; together they would be more than a CTA may have.
constexpr int kLarge = 40 * 1024 / 4;
__shared__ int large_first[kLarge];
__shared__ int large_second[kLarge];
__shared__ int unused[kLarge];
__device__ __noinline__ int exchange(int v) {
  __shared__ int common[64];
  common[threadIdx.x] = v;
  __syncthreads();
  return common[63 - threadIdx.x];
}
__global__ void first(int* out) {
  for (int i = static_cast<int>(threadIdx.x); i < kLarge; i += 64) large_first[i] = i;
  int v = exchange(static_cast<int>(threadIdx.x));
  out[threadIdx.x] =
      v + large_first[kLarge - 1 - (kLarge - 1 - static_cast<int>(threadIdx.x)) / 64 * 64];
}
template <int MUTANT>
__global__ void second(int* out) {
  for (int i = static_cast<int>(threadIdx.x); i < kLarge; i += 64) {
    large_second[i] = 2 * i;
    ONLY(3) large_first[i] = i;
  }
  out[threadIdx.x] = exchange(large_second[threadIdx.x]) + PICK(3, 0, large_first[threadIdx.x]);
}
template <int MUTANT>
__global__ void get(Unary* to) {
  *to = PICK(2, square, reinterpret_cast<Unary>(half_of));
}

template <int MUTANT>
int run() {
  std::vector<int> in(64), want(64);
  auto ackermann_of = [](auto self, int m, int n) -> int {
    return m == 0 ? n + 1 : self(self, m - 1, n == 0 ? 1 : self(self, m, n - 1));
  };
  for (int i = 0; i < 64; ++i) {
    int x = in[i] = small_int(static_cast<size_t>(i)) + 4;
    int v = i % 3 == 0 ? 2 * x : i % 3 == 1 ? x * x : -x;
    want[i] = v + 1000 * x * x + 10000 * (i % 2 ? x * x : 3 * x) * 2 +
              ackermann_of(ackermann_of, i % 3, x & 3);
  }
  Buffer<int> input(in), out(64);
  Buffer<Unary> pointer(1);
  launch(get<MUTANT>, {.grid = 1, .block = 1}, pointer.data);
  launch(call<MUTANT>, {.grid = 1, .block = 64}, input.data, out.data, pointer.download()[0]);
  CHECK(cudaDeviceSynchronize());
  if (int failed = verdict(out.download(), want)) return failed;
  launch(first, {.grid = 1, .block = 64}, out.data);
  CHECK(cudaDeviceSynchronize());
  for (int i = 0; i < 64; ++i) want[i] = 63 - i + kLarge - 1 - (kLarge - 1 - i) / 64 * 64;
  if (int failed = verdict(out.download(), want)) return failed;
  cudaFuncAttributes attributes;
  CHECK(cudaFuncGetAttributes(&attributes, second<MUTANT>));
  std::printf("%zu bytes of shared memory\n", attributes.sharedSizeBytes);
  launch(second<MUTANT>, {.grid = 1, .block = 64}, out.data);
  CHECK(cudaDeviceSynchronize());
  for (int i = 0; i < 64; ++i) want[i] = 2 * (63 - i);
  if (attributes.sharedSizeBytes != sizeof(int) * (kLarge + 64)) return 1;
  return verdict(out.download(), want);
}
MAIN(3)
