// x = logit + bias;  x = x < 0 ? x * repetition : x / repetition where the tally is not 0;
// x -= frequency * n;  x -= presence * (n > 0);  -inf where it is banned
//
// A tile is a run of kProcessLogitsTile tokens of one row, four of them per thread: 16 bytes of each
// table, and half a byte of a bit mask. CTAs walk over tiles with a grid stride. Nothing is read
// twice. A row that is not active costs its copy: what else there is of it is loaded after `active`
// has arrived, all in one flight.
//
// Each operation rounds once, like the reference's: results are equal bit by bit.
// See docs/kernels/process_logits.md.
#pragma once
#include <cuda_bf16.h>

#include "kernels/process_logits/process_logits.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/base.h"

namespace l4k {

constexpr int kQuad = 4;  // tokens of a thread
constexpr int kProcessLogitsThreads = 128;
constexpr int kProcessLogitsTile = kProcessLogitsThreads * kQuad;  // tokens
constexpr int kProcessLogitsCtas = 12;                             // per SM: 40 registers

// Four words in one load; unless kWhole, the first `count` of them and zeros.
template <bool kWhole>
__device__ __forceinline__ uint4 load_quad(const void* from, int count) {
  if constexpr (kWhole) return ptx::load_streaming(from);
  const uint32_t* words = static_cast<const uint32_t*>(from);
  return {words[0], count > 1 ? words[1] : 0, count > 2 ? words[2] : 0, count > 3 ? words[3] : 0};
}

template <bool kWhole>
__device__ __forceinline__ void load_logits(const ProcessLogitsParams& params, int64_t first,
                                            int count, float (&x)[kQuad]) {
  if (params.float32) {
    const uint4 raw = load_quad<kWhole>(static_cast<const float*>(params.logits) + first, count);
    const uint32_t words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < kQuad; ++i) x[i] = __uint_as_float(words[i]);
    return;
  }
  const __nv_bfloat16* from = static_cast<const __nv_bfloat16*>(params.logits) + first;
  __nv_bfloat16 values[kQuad] = {};
  if constexpr (kWhole) {
    reinterpret_cast<uint2&>(values) = *reinterpret_cast<const uint2*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kQuad; ++i)
      if (i < count) values[i] = from[i];
  }
#pragma unroll
  for (int i = 0; i < kQuad; ++i) x[i] = __bfloat162float(values[i]);
}

// Four bits from a multiple of 4 on, the lowest of what it returns; others above them.
__device__ __forceinline__ uint32_t load_bits(const int* row, int token) {
  return reinterpret_cast<const uint8_t*>(row)[token / 8] >> (token & 4);
}

// Changes the four logits from `token` on. Without __fmul_rn and its like the compiler would fuse
// products with the sums after them, and round once where the reference rounds twice.
template <bool kWhole>
__device__ __forceinline__ void process(const ProcessLogitsParams& params, int64_t row, int token,
                                        int count, float (&x)[kQuad]) {
  const uint4 tallies = load_quad<kWhole>(params.tally + row * params.tally_stride + token, count);
  const uint4 biases = load_quad<kWhole>(params.bias + row * params.bias_stride + token, count);
  const uint32_t stops = load_bits(params.stop_bits + row * params.stop_stride, token);
  uint32_t allowed = load_bits(params.allowed + row * params.allowed_stride, token);
  const float repetition = params.repetition_penalty[row];
  const float frequency = params.frequency_penalty[row];
  const float presence = params.presence_penalty[row];
  if (params.generated[row] < params.min_tokens[row]) allowed &= ~stops;
  const uint32_t tally[] = {tallies.x, tallies.y, tallies.z, tallies.w};
  const uint32_t bias[] = {biases.x, biases.y, biases.z, biases.w};
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    const int n = static_cast<int>(tally[i]) >> 1;
    float v = __fadd_rn(x[i], __uint_as_float(bias[i]));
    if (tally[i] != 0) v = v < 0.f ? __fmul_rn(v, repetition) : __fdiv_rn(v, repetition);
    v = __fsub_rn(v, __fmul_rn(frequency, static_cast<float>(n)));
    v = __fsub_rn(v, __fmul_rn(presence, n > 0 ? 1.f : 0.f));
    x[i] = allowed >> i & 1 ? v : -INFINITY;
  }
}

template <bool kWhole>
__device__ __forceinline__ void process_tokens(const ProcessLogitsParams& params, int64_t row,
                                               int token) {
  const int count = params.vocab - token;
  const bool active = params.active[row] != 0;
  float x[kQuad];
  load_logits<kWhole>(params, row * params.logits_stride + token, count, x);
  if (active) process<kWhole>(params, row, token, count, x);
  float* out = params.out + row * params.vocab + token;
  if constexpr (kWhole) {
    ptx::store_streaming(out, uint4{__float_as_uint(x[0]), __float_as_uint(x[1]),
                                    __float_as_uint(x[2]), __float_as_uint(x[3])});
  } else {
#pragma unroll
    for (int i = 0; i < kQuad; ++i)
      if (i < count) out[i] = x[i];
  }
}

// `vectors`: all rows begin at multiples of four elements, and so do those of the result end.
__global__ void __launch_bounds__(kProcessLogitsThreads, kProcessLogitsCtas)
    process_logits_kernel(ProcessLogitsParams params, bool vectors) {
  const int row_tiles = ceil_div(params.vocab, kProcessLogitsTile);
  const int64_t num_tiles = params.rows * row_tiles;

  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int64_t row = tile / row_tiles;
    const int token = static_cast<int>(tile - row * row_tiles) * kProcessLogitsTile +
                      static_cast<int>(threadIdx.x) * kQuad;
    if (token >= params.vocab) continue;
    if (vectors) process_tokens<true>(params, row, token);
    else process_tokens<false>(params, row, token);
  }
}

}  // namespace l4k
