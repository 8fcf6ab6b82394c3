// D[m, :] = act(row_scale[m] * (A[m, :] W[e(m)]^T) + bias) + residual[m, :], ragged by expert, W int4
// in the tiles of tile/int4.h. For many tokens: wgmma, weights converted in registers.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tile/epilogue.h"
#include "tile/int4.h"

namespace l4k {

struct W4GemmParams {
  int m, n, k;        // n: rows of one expert's weight, a multiple of 16; k: of 128
  int num_experts;    // 1 when dense
  const void* a;      // [M, K] bf16
  int64_t a_stride;   // elements between rows
  const void* tiles;  // [E, N / 16, K / 128] tiles
  Int4Tile tile;
  const int* expert_offsets;  // [E + 1], null when dense
  Epilogue epilogue;
  bool static_weights;  // no kernel that may still run wrote the tiles: read them before the wait
  int config;           // a row of kW4GemmConfigs; -1: choose
  void* workspace;      // w4_gemm_workspace(params) words, uninitialised
  uint64_t nonce;       // 48 bits that no other launch has
  uint32_t* error;      // sticky error word
};

int64_t w4_gemm_workspace(const W4GemmParams& params);
cudaError_t w4_gemm(const W4GemmParams& params, cudaStream_t stream);

}  // namespace l4k
