// Tensor-core products of one warp, and the loads that feed them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "ptx/mbarrier.cuh"

namespace l4k::ptx {

// PTX ISA: mma.m16n8k16, row.col, float32 sums. With g = lane / 4 and c = lane % 4:
// a: rows g, g + 8, columns 2c and 2c + 1, then the same 8 columns on; b: rows 2c and 2c + 1, then
// 8 rows on, of column g; d: row g, columns 2c and 2c + 1, then row g + 8.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
#define L4K_MMA(type)                                                 \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type \
               ".f32 {%0, %1, %2, %3}, "                              \
               "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"        \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (std::is_same_v<T, __nv_bfloat16>) L4K_MMA("bf16");
  else L4K_MMA("f16");
#undef L4K_MMA
}

// PTX ISA: ldmatrix, four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of
// matrix i / 8. A lane receives elements 2c and 2c + 1 of row g of each; transposed, elements g of
// rows 2c and 2c + 1.
template <bool kTransposed>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], uint32_t row) {
#define L4K_LDMATRIX(trans)                                                                \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                            \
               : "r"(row)                                                                  \
               : "memory")
  if constexpr (kTransposed) L4K_LDMATRIX(".trans");
  else L4K_LDMATRIX("");
#undef L4K_LDMATRIX
}

// PTX ISA: cvt.f16x2.e4m3x2, exact. The lower and the upper two of four e4m3 values.
__device__ __forceinline__ void e4m3_to_f16(uint32_t four, uint32_t& lower, uint32_t& upper) {
  asm("{\n\t.reg .b16 a, b;\n\t"
      "mov.b32 {a, b}, %2;\n\t"
      "cvt.rn.f16x2.e4m3x2 %0, a;\n\t"
      "cvt.rn.f16x2.e4m3x2 %1, b;\n\t}"
      : "=r"(lower), "=r"(upper)
      : "r"(four));
}

}  // namespace l4k::ptx
