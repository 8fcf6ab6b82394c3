// D[m, :] = act(row_scale[m] * (A[m, :] B[e(m)]^T) + bias) + residual[m, :], ragged by expert.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/gemm/choose.h"
#include "tile/epilogue.h"
#include "tile/scaling.h"

namespace l4k {

struct GemmParams {
  int m, n, k;      // n: rows of one expert's B, a multiple of 8; k * element size: of 16 bytes
  int num_experts;  // 1 when dense
  bool fp8;         // e4m3 operands, else bf16
  const void* a;    // [M, K]
  const void* b;    // [E, N, K], contiguous
  float* d_scale;   // [M, N' / 128]: D is e4m3 with 1x128 scales (SwiGLU only); null: it is not
  const int* expert_offsets;  // [E + 1], null when dense
  GemmScales scales;
  int64_t a_stride;  // elements between rows
  Epilogue epilogue;
  bool can_stream;      // csrc/kernels/stream_gemm computes it as well
  bool fast_accum;      // e4m3: leave long sums to the tensor core's reduced precision
  GemmChoice choice;    // of a configuration; what is asked for until choose_gemm has answered
  int ctas_per_tile;    // set by the launcher, as is
  int max_clusters;     // how many of them run at once
  bool residual_boxes;  // as is: the residual comes by TMA
  uint32_t* error;      // sticky error word
};

inline GemmProblem problem_of(const GemmParams& p) {
  return {.m = p.m,
          .n = p.n,
          .k = p.k,
          .num_experts = p.num_experts,
          .fp8 = p.fp8,
          .fast_accum = p.fast_accum,
          .gelu = p.epilogue.activation == Activation::kGelu,
          .swiglu = p.epilogue.activation == Activation::kSwiglu,
          .block_scales = p.scales.along_k(),
          .fp8_out = p.d_scale != nullptr,
          .can_stream = p.can_stream};
}

// What computes it on this device: a configuration, or GemmChoice::kStream.
GemmChoice choose_gemm(const GemmParams& params);
cudaError_t gemm(const GemmParams& params, cudaStream_t stream);

}  // namespace l4k
