// D[m, :] = act(row_scale[m] * (A[m, :] B[e(m)]^T) + bias) + residual[m, :], ragged by expert.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/gemm/choose.h"
#include "tile/epilogue.h"

namespace l4k {

// How e4m3 operands are scaled. A: per matrix, per row, per row and 128 of K. B: per matrix, per
// output channel, per 128 x 128 block.
enum class GemmScale : int { kNone, kTensor, kRow, kBlock };

struct GemmParams {
  int m, n, k;      // n: rows of one expert's B, a multiple of 8; k * element size: of 16 bytes
  int num_experts;  // 1 when dense
  bool fp8;         // e4m3 operands, else bf16
  const void* a;    // [M, K]
  const void* b;    // [E, N, K], contiguous
  float* d_scale;   // [M, N' / 128]: D is e4m3 with 1x128 scales (SwiGLU only); null: it is not
  const int* expert_offsets;  // [E + 1], null when dense
  GemmScale scale_a, scale_b;
  const float* sfa;  // [1], [M] or [M, K / 128]
  const float* sfb;  // [E, 1], [E, N] or [E, N / 128, K / 128]
  int64_t a_stride;  // elements between rows
  Epilogue epilogue;
  bool fast_accum;    // e4m3: leave long sums to the tensor core's reduced precision
  GemmChoice asked;   // or one of GemmChoice's constants: choose by shape
  int ctas_per_tile;  // set by the launcher, as is
  int max_clusters;   // how many of them run at once
  uint32_t* error;    // sticky error word
};

inline GemmProblem problem_of(const GemmParams& p) {
  return {.m = p.m,
          .n = p.n,
          .k = p.k,
          .num_experts = p.num_experts,
          .fp8 = p.fp8,
          .fast_accum = p.fast_accum,
          .gelu = p.epilogue.activation == Activation::kGelu,
          .block_scales = p.scale_a == GemmScale::kBlock || p.scale_b == GemmScale::kBlock,
          .fp8_out = p.d_scale != nullptr};
}

cudaError_t gemm(const GemmParams& params, cudaStream_t stream);

}  // namespace l4k
