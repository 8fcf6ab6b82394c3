// D[m, :] = act(row_scale[m] * (A[m, :] W[e(m)]^T) + bias) + residual[m, :], ragged by expert, for few
// tokens: the weights stream through every SM once, at the speed of memory.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/stream_gemm/schedule.h"
#include "tile/epilogue.h"
#include "tile/few_rows.h"
#include "tile/int4.h"
#include "tile/scaling.h"

namespace l4k {

struct StreamGemmParams {
  int m, n, k;  // n: rows of one expert's weight, a multiple of 8; k * element size: of 16 bytes
  int num_experts;            // 1 when dense
  StreamFormat format;        // int4: n a multiple of 16, k of 128
  const void* a;              // [M, K], e4m3 with weights of e4m3, else bf16
  int64_t a_stride;           // elements between rows
  RowGather gather;           // of bf16 rows, with expert_offsets: A is [M / top_k, K]
  const void* weights;        // [E, N, K], or [E, N / 16, K / 128] tiles of int4
  Int4Tile tile;              // what each of those holds
  GemmScales scales;          // of e4m3
  const int* expert_offsets;  // [E + 1], null when dense
  Epilogue epilogue;
  bool static_weights;  // no kernel that may still run wrote the weights: read them before the wait
  void* workspace;      // stream_gemm_workspace(params) words, uninitialised
  uint64_t nonce;       // 48 bits that no other launch has
  int activation_bytes;  // shared memory for rows of A; set by the launcher
  uint32_t* error;       // sticky error word
};

// Needs can_stream(format, m, k, experts) of schedule.h, and workspace.
int64_t stream_gemm_workspace(const StreamGemmParams& params);
cudaError_t stream_gemm(const StreamGemmParams& params, cudaStream_t stream);

}  // namespace l4k
