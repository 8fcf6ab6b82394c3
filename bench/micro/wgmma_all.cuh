// wgmma for the shapes that the sweep needs and csrc/ptx/wgmma.cuh lacks: every N with A in shared
// memory or in registers. Always accumulates. B is K-major in both; the order of use is the same.
#pragma once
#include "ptx/wgmma.cuh"

namespace micro {

template <int N, typename T>
struct Product;

// clang-format off
#define MICRO_D4   "%0, %1, %2, %3"
#define MICRO_D16  L4K_D0 ", %10, %11, %12, %13, %14, %15"
#define MICRO_D32  L4K_D32
#define MICRO_D64  L4K_D64
#define MICRO_D8   L4K_D8
#define MICRO_D96  L4K_D90 ", %90, %91, %92, %93, %94, %95"
#define MICRO_D128 L4K_D128
#define MICRO_O4(d)   L4K_F4(d, 0)
#define MICRO_O8(d)   L4K_O8(d)
#define MICRO_O16(d)  L4K_F16(d, 0)
#define MICRO_O32(d)  L4K_O32(d)
#define MICRO_O64(d)  L4K_O64(d)
#define MICRO_O96(d)  L4K_O64(d), L4K_F32(d, 64)
#define MICRO_O128(d) L4K_O128(d)
// clang-format on

#define MICRO_PRODUCT_OF(n, count, type, shape, name, ss_tail, rs_tail, o0, o1, o2, o3, o4)      \
  template <>                                                                                    \
  struct Product<n, type> {                                                                      \
    static __device__ __forceinline__ void ss(float (&d)[count], uint64_t a, uint64_t b) {       \
      asm volatile(                                                                              \
          "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, 1, 0;\n\t"                                       \
          "wgmma.mma_async.sync.aligned.m64n" #n shape ".f32." name "." name " {" MICRO_D##count \
          "}, %" o0 ", %" o1 ", p, " ss_tail ";\n\t}"                                            \
          : MICRO_O##count(d)                                                                    \
          : "l"(a), "l"(b));                                                                     \
    }                                                                                            \
    static __device__ __forceinline__ void rs(float (&d)[count], const uint32_t (&a)[4],         \
                                              uint64_t b) {                                      \
      asm volatile(                                                                              \
          "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, 1, 0;\n\t"                                       \
          "wgmma.mma_async.sync.aligned.m64n" #n shape ".f32." name "." name " {" MICRO_D##count \
          "}, {%" o0 ", %" o1 ", %" o2 ", %" o3 "}, %" o4 ", p, " rs_tail ";\n\t}"               \
          : MICRO_O##count(d)                                                                    \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                 \
    }                                                                                            \
  };
#define MICRO_PRODUCT(n, count, ...)                                                             \
  MICRO_PRODUCT_OF(n, count, __nv_bfloat16, "k16", "bf16", "1, 1, 0, 0", "1, 1, 0", __VA_ARGS__) \
  MICRO_PRODUCT_OF(n, count, __nv_fp8_e4m3, "k32", "e4m3", "1, 1", "1, 1", __VA_ARGS__)

MICRO_PRODUCT(8, 4, "4", "5", "6", "7", "8")
MICRO_PRODUCT(16, 8, "8", "9", "10", "11", "12")
MICRO_PRODUCT(32, 16, "16", "17", "18", "19", "20")
MICRO_PRODUCT(64, 32, "32", "33", "34", "35", "36")
MICRO_PRODUCT(128, 64, "64", "65", "66", "67", "68")
MICRO_PRODUCT(192, 96, "96", "97", "98", "99", "100")
MICRO_PRODUCT(256, 128, "128", "129", "130", "131", "132")

// Operands of products that are exact in every order: rows of 128 bytes that hold whole numbers
// from -2 to 2, in the 128-byte swizzle.
constexpr int kSteps = 4;  // wgmma along a row of 128 bytes

template <typename T>
struct Operand {
  static constexpr int kDepth = 128 / sizeof(T);

  static int number(int row, int k, int salt) {
    return int((uint32_t(row * 131 + k * 7 + salt) * 2654435761u >> 13) % 5) - 2;
  }

  static std::vector<uint8_t> bytes(int rows, int salt) {
    std::vector<uint8_t> made(size_t(rows) * 128);
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < kDepth; ++k) {
        const T value(static_cast<float>(number(row, k, salt)));
        const size_t at = size_t(row) * 128 + k * sizeof(T);
        std::memcpy(&made[at ^ (row % 8) << 4], &value, sizeof(T));
      }
    return made;
  }

  // Element (row, column) of A B^T.
  static float product(int row, int column, int salt_a, int salt_b) {
    int sum = 0;
    for (int k = 0; k < kDepth; ++k) sum += number(row, k, salt_a) * number(column, k, salt_b);
    return static_cast<float>(sum);
  }
};

// A warpgroup's fragment of one step of A, from shared memory.
__device__ __forceinline__ void load_fragment(const uint8_t* a, int step, uint32_t (&fragment)[4]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = (row + i % 2 * 8) * 128 + step * 32 + i / 2 * 16 + lane % 4 * 4;
    fragment[i] = *reinterpret_cast<const uint32_t*>(a + (at ^ (row % 8) << 4));
  }
}

__device__ __forceinline__ void copy_operand(uint8_t* smem, const uint8_t* global, int bytes) {
  for (int i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16)
    *reinterpret_cast<uint4*>(smem + i) = *reinterpret_cast<const uint4*>(global + i);
}

// Where accumulator i of a thread belongs in the 64 x N tile.
__device__ __forceinline__ int tile_index(int i, int columns) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4 + i / 2 % 2 * 8;
  return row * columns + i / 4 * 8 + lane % 4 * 2 + i % 2;
}

}  // namespace micro
