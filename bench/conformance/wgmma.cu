// wgmma m64n64: every type, both majors, every swizzle, A in registers, signs, and sums. Shared
// memory is full of operands, so that a descriptor that is read in another way gives other results.
#include "formats.h"
#include "ptx/wgmma.cuh"

namespace {

using conformance::Format;
using conformance::Kind;

constexpr int kHalf = 8 << 10;  // bytes of shared memory in which A lies, and as much for B

struct Thread {
  uint32_t smem[32], c[32];
};

enum Swizzle : uint64_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

// A matrix descriptor but for the address: all in bytes. `offset` is into its half.
struct Layout {
  int offset, leading, stride;
  Swizzle swizzle;
  __host__ __device__ uint64_t bits() const {
    return uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 | swizzle << 62;
  }
};

constexpr Layout kRows128{0, 16, 1024, k128}, kRows128At32{32, 16, 1024, k128},
    kRows128At64{64, 16, 1024, k128}, kRows64{0, 16, 512, k64}, kRows64At32{32, 16, 512, k64},
    kRows32{0, 16, 256, k32}, kCores{0, 128, 256, kNone}, kCoresApart{0, 1024, 128, kNone},
    kColumns128{0, 2048, 1024, k128}, kColumns64{0, 1024, 512, k64}, kColumns32{0, 512, 256, k32},
    kColumnsCores{0, 1024, 128, kNone}, kColumnsCoresSwapped{0, 128, 1024, kNone};

#define CASES(X)                                                         \
  X(k16, f32, bf16, bf16, "", "p, 1, 1, 0, 0", kRows128, kRows128)       \
  X(k16, f32, f16, f16, "", "p, 1, 1, 0, 0", kRows128At32, kRows128At64) \
  X(k16, f16, f16, f16, "", "p, 1, 1, 0, 0", kRows128, kRows64)          \
  X(k8, f32, tf32, tf32, "", "p, 1, 1", kRows128, kRows128)              \
  X(k32, f32, e4m3, e4m3, "", "p, 1, 1", kRows128, kRows128)             \
  X(k32, f32, e4m3, e5m2, "", "p, 1, 1", kRows64At32, kRows32)           \
  X(k32, f32, e5m2, e5m2, "", "p, 1, 1", kRows128, kRows128)             \
  X(k32, f16, e4m3, e4m3, "", "p, 1, 1", kRows128, kRows128)             \
  X(k32, s32, s8, s8, "", "p", kRows128, kRows128)                       \
  X(k32, s32, u8, s8, ".satfinite", "p", kRows128, kRows64)              \
  X(k16, f32, bf16, bf16, "", "p, -1, 1, 0, 0", kRows64, kRows64At32)    \
  X(k16, f32, bf16, bf16, "", "p, -1, -1, 0, 0", kRows32, kRows32)       \
  X(k16, f32, bf16, bf16, "", "q, 1, -1, 0, 0", kCores, kCoresApart)     \
  X(k16, f32, bf16, bf16, "", "p, 1, 1, 1, 0", kColumns128, kRows128)    \
  X(k16, f32, bf16, bf16, "", "p, 1, 1, 0, 1", kRows128, kColumns128)    \
  X(k16, f32, f16, f16, "", "p, 1, 1, 1, 1", kColumns64, kColumns64)     \
  X(k16, f32, bf16, bf16, "", "p, 1, 1, 1, 1", kColumns32, kColumns32)   \
  X(k16, f32, bf16, bf16, "", "p, 1, 1, 1, 1", kColumnsCores, kColumnsCoresSwapped)
#define REGISTER_CASES(X)                                        \
  X(k16, f32, bf16, bf16, "", "p, 1, 1, 0", kRows128, kRows128)  \
  X(k16, f32, f16, f16, "", "p, 1, -1, 1", kRows128, kColumns64) \
  X(k8, f32, tf32, tf32, "", "p, 1, 1", kRows128, kRows128At32)  \
  X(k32, f32, e4m3, e4m3, "", "p, 1, 1", kRows128, kRows32)      \
  X(k32, s32, s8, u8, "", "p", kRows128, kRows128)
#define D4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define OUT16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define OUT32                                                                                   \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, "                                                                                  \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define PREDICATES                                                \
  "{ .reg .pred p, q; setp.eq.u32 p, 0, 0; setp.ne.u32 q, 0, 0; " \
  "wgmma.mma_async.sync.aligned.m64n64"

__device__ void load(const Thread& in, uint8_t* smem, uint32_t (&d)[32]) {
  for (int i = 0; i < 32; ++i) {
    reinterpret_cast<uint32_t*>(smem)[threadIdx.x * 32 + i] = in.smem[i];
    d[i] = in.c[i];
  }
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  l4k::ptx::wgmma_fence();
}

__device__ void finish(const uint32_t (&d)[32], uint32_t* out) {
  l4k::ptx::wgmma_commit();
  l4k::ptx::wgmma_wait<0>();
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}

__device__ uint64_t descriptor(const uint8_t* smem, const Layout& layout) {
  return layout.bits() | (l4k::ptx::smem_address(smem + layout.offset) & 0x3ffff) >> 4;
}

template <int kCase>
struct Product;

enum { kBefore = __COUNTER__ };
#define PRODUCT(operands, out_, types, tail)                                              \
  template <>                                                                             \
  struct Product<__COUNTER__ - kBefore - 1> {                                             \
    static __device__ __forceinline__ void run(uint32_t (&d)[32], const uint32_t (&a)[4], \
                                               uint64_t in_a, uint64_t in_b) {            \
      asm volatile(PREDICATES types " " out_ ", " operands ", " tail "; }"                \
                   : D16(0), D16(16)                                                      \
                   : "l"(in_a), "l"(in_b), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));   \
    }                                                                                     \
  };
#define OUT_f32 OUT32
#define OUT_s32 OUT32
#define OUT_f16 OUT16
#define TYPES(k, tc, ta, tb, rest) #k "." #tc "." #ta "." #tb rest
#define SHARED(k, tc, ta, tb, rest, tail, la, lb) \
  PRODUCT("%32, %33", OUT_##tc, TYPES(k, tc, ta, tb, rest), tail)
#define REGISTER(k, tc, ta, tb, rest, tail, la, lb) \
  PRODUCT("{%34, %35, %36, %37}, %33", OUT_##tc, TYPES(k, tc, ta, tb, rest), tail)
CASES(SHARED)
REGISTER_CASES(REGISTER)

template <int kCase>
__global__ __launch_bounds__(128) void family(const Thread* threads, Layout la, Layout lb,
                                              uint32_t* out) {
  __shared__ __align__(1024) uint8_t smem[2 * kHalf];
  uint32_t d[32], a[4];
  for (int i = 0; i < 4; ++i) a[i] = threads[threadIdx.x].smem[i];
  load(threads[threadIdx.x], smem, d);
  Product<kCase>::run(d, a, descriptor(smem, la), descriptor(smem + kHalf, lb));
  finish(d, out);
}

struct Case {
  const char *instruction, *tail;
  bool registers;  // A is in registers
  Format a, b, c;
  Layout la, lb;
  std::string name() const {
    return std::string(instruction) + " a=" + (registers ? "registers" : text(la)) +
           " b=" + text(lb) + " " + tail;
  }
  static std::string text(const Layout& layout) {
    return std::to_string(layout.offset) + "/" + std::to_string(layout.leading) + "/" +
           std::to_string(layout.stride) + "/" + std::to_string(layout.swizzle);
  }
};
#define NAMED_AS(registers, types, ta, tb, tc, tail, la, lb) \
  {"wgmma.m64n64" types, tail, registers, Format::ta, Format::tb, Format::tc, la, lb},
#define NAMED(k, tc, ta, tb, rest, tail, la, lb) \
  NAMED_AS(false, TYPES(k, tc, ta, tb, rest), ta, tb, tc, tail, la, lb)
#define NAMED_REGISTER(k, tc, ta, tb, rest, tail, la, lb) \
  NAMED_AS(true, TYPES(k, tc, ta, tb, rest), ta, tb, tc, tail, la, lb)
constexpr Case kCases[] = {CASES(NAMED) REGISTER_CASES(NAMED_REGISTER)};
constexpr int kCount = sizeof(kCases) / sizeof(*kCases);

Thread thread_of(const Case& c, Kind kind, int index, conformance::Random& draw) {
  Thread thread;
  // The first half of shared memory is A, the second B; A in registers is taken from anywhere.
  const bool of_a = index < 64;
  for (uint32_t& word : thread.smem) word = packed(of_a ? c.a : c.b, kind, of_a, draw);
  const bool tiny = kind == Kind::tiny && c.c != Format::s32;
  for (uint32_t& word : thread.c) word = tiny ? 0 : packed(c.c, kind, false, draw);
  return thread;
}

template <int... kIndices>
void launch(std::integer_sequence<int, kIndices...>, int problem, const Thread* threads,
            uint32_t* out, int problems) {
  (family<kIndices><<<1, 128, 0, micro::stream()>>>(
       threads + (kIndices * problems + problem) * 128, kCases[kIndices].la, kCases[kIndices].lb,
       out + (kIndices * problems + problem) * 128 * 32),
   ...);
}

}  // namespace

int main(int argc, char** argv) {
  const bool sums = argc > 1 && std::string(argv[1]) == "sums";
  const std::vector<Kind> kinds =
      sums ? std::vector{Kind::sums} : std::vector{Kind::exact, Kind::special, Kind::tiny};
  const int problems = static_cast<int>(kinds.size());
  conformance::Random draw{sums ? 12u : 11u};
  std::vector<Thread> threads;
  std::vector<std::string> names;
  for (const Case& c : kCases) {
    names.push_back(c.name());
    for (Kind kind : kinds)
      for (int i = 0; i < 128; ++i) threads.push_back(thread_of(c, kind, i, draw));
  }
  const conformance::Buffer<Thread> in(threads);
  const conformance::Buffer<uint32_t> out(threads.size() * 32);
  for (int problem = 0; problem < problems; ++problem)
    launch(std::make_integer_sequence<int, kCount>(), problem, in.data, out.data, problems);
  std::vector<uint32_t> inputs(threads.size() * 64);
  std::memcpy(inputs.data(), threads.data(), inputs.size() * 4);
  conformance::write({names, problems * 128, 64, 32, true}, inputs, out.host());
}
