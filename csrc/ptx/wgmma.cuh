// wgmma: D[64, N] += A[64, K] * B[N, K]^T by one warpgroup, asynchronously. K is 32 bytes.
//
// Order of use: wgmma_fence() after touching accumulators or A registers, the Wgmma calls,
// wgmma_commit(), wgmma_wait<pending>(). Until the wait, neither accumulators nor A registers may be
// touched; ptxas does not always say so.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "ptx/mbarrier.cuh"

namespace l4k::ptx {

// PTX ISA: wgmma.fence
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// PTX ISA: wgmma.commit_group
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// PTX ISA: wgmma.wait_group. At most `kPending` groups are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// PTX ISA: wgmma, matrix descriptor. `tile` is K-major with rows of 128 bytes in the 128-byte
// swizzle, 1024-byte aligned; groups of 8 rows are 1024 bytes apart. Advance K inside the swizzle
// span by adding bytes / 16 to the descriptor.
__device__ __forceinline__ uint64_t smem_descriptor_sw128(const void* tile) {
  constexpr uint64_t kLeading = 1;         // unused by swizzled K-major layouts
  constexpr uint64_t kStride = 1024 >> 4;  // between groups of 8 rows
  constexpr uint64_t kSwizzle128 = 1;
  uint64_t start = (smem_address(tile) & 0x3ffff) >> 4;
  return start | kLeading << 16 | kStride << 32 | kSwizzle128 << 62;
}

// The same swizzle for a B whose N is contiguous ("transposed"; 16-bit types only): rows of 128
// bytes are 64 of N at one k, groups of 8 k are 1024 bytes apart, groups of 64 of N `column_stride`
// bytes. Advance K by 16 rows by adding 2048 / 16.
__device__ __forceinline__ uint64_t smem_descriptor_sw128_transposed(const void* tile,
                                                                     uint32_t column_stride) {
  constexpr uint64_t kStride = 1024 >> 4;
  constexpr uint64_t kSwizzle128 = 1;
  uint64_t start = (smem_address(tile) & 0x3ffff) >> 4;
  return start | uint64_t{column_stride >> 4} << 16 | kStride << 32 | kSwizzle128 << 62;
}

// clang-format off
#define L4K_R4(b)   "%" #b "0, %" #b "1, %" #b "2, %" #b "3"
#define L4K_R10(b)  "%" #b "0, %" #b "1, %" #b "2, %" #b "3, %" #b "4, %" #b "5, %" #b "6, %" #b "7, %" #b "8, %" #b "9"
#define L4K_D0      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9"
#define L4K_D8      "%0, %1, %2, %3, %4, %5, %6, %7"
#define L4K_D16     L4K_D0 ", %10, %11, %12, %13, %14, %15"
#define L4K_D32     L4K_D0 ", " L4K_R10(1) ", " L4K_R10(2) ", %30, %31"
#define L4K_D40     L4K_D0 ", " L4K_R10(1) ", " L4K_R10(2) ", " L4K_R10(3)
#define L4K_D56     L4K_D40 ", " L4K_R10(4) ", %50, %51, %52, %53, %54, %55"
#define L4K_D64     L4K_D0 ", " L4K_R10(1) ", " L4K_R10(2) ", " L4K_R10(3) ", " L4K_R10(4) ", " L4K_R10(5) ", " L4K_R4(6)
#define L4K_D80     L4K_D40 ", " L4K_R10(4) ", " L4K_R10(5) ", " L4K_R10(6) ", " L4K_R10(7)
#define L4K_D90     L4K_D80 ", " L4K_R10(8)
#define L4K_D112    L4K_D90 ", " L4K_R10(9) ", " L4K_R10(10) ", %110, %111"
#define L4K_D128    L4K_D90 ", " L4K_R10(9) ", " L4K_R10(10) ", " L4K_R10(11) ", %120, %121, %122, %123, %124, %125, %126, %127"
#define L4K_F4(d, i)   "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define L4K_F16(d, i)  L4K_F4(d, i), L4K_F4(d, i + 4), L4K_F4(d, i + 8), L4K_F4(d, i + 12)
#define L4K_F32(d, i)  L4K_F16(d, i), L4K_F16(d, i + 16)
#define L4K_O8(d)   L4K_F4(d, 0), L4K_F4(d, 4)
#define L4K_O16(d)  L4K_F16(d, 0)
#define L4K_O32(d)  L4K_F32(d, 0)
#define L4K_O40(d)  L4K_F32(d, 0), L4K_F4(d, 32), L4K_F4(d, 36)
#define L4K_O56(d)  L4K_F32(d, 0), L4K_F16(d, 32), L4K_F4(d, 48), L4K_F4(d, 52)
#define L4K_O64(d)  L4K_F32(d, 0), L4K_F32(d, 32)
#define L4K_O80(d)  L4K_F32(d, 0), L4K_F32(d, 32), L4K_F16(d, 64)
#define L4K_O112(d) L4K_F32(d, 0), L4K_F32(d, 32), L4K_F32(d, 64), L4K_F16(d, 96)
#define L4K_O128(d) L4K_F32(d, 0), L4K_F32(d, 32), L4K_F32(d, 64), L4K_F32(d, 96)
// clang-format on

// `accumulate` false overwrites D. A and B come from shared memory through descriptors.
template <int N, typename T>
struct Wgmma;

#define L4K_WGMMA_SS(n, registers, type, shape, name, tail, sd, sa, sb)                      \
  template <>                                                                                \
  struct Wgmma<n, type> {                                                                    \
    static __device__ __forceinline__ void ss(float (&d)[registers], uint64_t a, uint64_t b, \
                                              bool accumulate) {                             \
      asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" sd                               \
                   ", 0;\n\t"                                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #n shape ".f32." name "." name        \
                   " {" L4K_D##registers "}, %" sa ", %" sb ", p, " tail ";\n\t}"            \
                   : L4K_O##registers(d)                                                     \
                   : "l"(a), "l"(b), "r"(int(accumulate)));                                  \
    }                                                                                        \
  };
#define L4K_WGMMA(n, registers, sa, sb, sd)                                          \
  L4K_WGMMA_SS(n, registers, __nv_bfloat16, "k16", "bf16", "1, 1, 0, 0", sd, sa, sb) \
  L4K_WGMMA_SS(n, registers, __nv_fp8_e4m3, "k32", "e4m3", "1, 1", sd, sa, sb)

L4K_WGMMA(16, 8, "8", "9", "10")
L4K_WGMMA(64, 32, "32", "33", "34")
L4K_WGMMA(80, 40, "40", "41", "42")
L4K_WGMMA(112, 56, "56", "57", "58")
L4K_WGMMA(128, 64, "64", "65", "66")
L4K_WGMMA(160, 80, "80", "81", "82")
L4K_WGMMA(224, 112, "112", "113", "114")
L4K_WGMMA(256, 128, "128", "129", "130")
L4K_WGMMA_SS(128, 64, __half, "k16", "f16", "1, 1, 0, 0", "66", "64", "65")

// bf16 or f16 with A in registers, two elements each: lane i of warp w holds what mma.m16n8k16 wants
// of rows 16 w ... 16 w + 15. The four A registers may not be written before the wait either. B is
// K-major, or transposed: P V of attention.
template <int N, typename T>
struct WgmmaRegisterA;

#define L4K_WGMMA_RS(n, registers, type, name, a0, a1, a2, a3, sb, sd, st)                     \
  template <>                                                                                  \
  struct WgmmaRegisterA<n, type> {                                                             \
    template <bool kTransposed>                                                                \
    static __device__ __forceinline__ void rs(float (&d)[registers], const uint32_t (&a)[4],   \
                                              uint64_t b, bool accumulate) {                   \
      asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" sd                                 \
                   ", 0;\n\t"                                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." name "." name             \
                   " {" L4K_D##registers "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" sb       \
                                         ", p, 1, 1, %" st ";\n\t}"                            \
                   : L4K_O##registers(d)                                                       \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), \
                     "n"(int(kTransposed)));                                                   \
    }                                                                                          \
  };

L4K_WGMMA_RS(32, 16, __nv_bfloat16, "bf16", "16", "17", "18", "19", "20", "21", "22")
L4K_WGMMA_RS(64, 32, __nv_bfloat16, "bf16", "32", "33", "34", "35", "36", "37", "38")
L4K_WGMMA_RS(128, 64, __nv_bfloat16, "bf16", "64", "65", "66", "67", "68", "69", "70")
L4K_WGMMA_RS(128, 64, __half, "f16", "64", "65", "66", "67", "68", "69", "70")

}  // namespace l4k::ptx
