// From sums to the result: row scale, bias, activation, residual, store.
//
// A warpgroup holds 64 weight rows; warp w rows 16 w ... 16 w + 15 of them. A thread's
// sums[4 j + 2 h + i] are row g + 8 h, g = lane / 4, and token 8 j + 2 (lane % 4) + i. D wants tokens as
// rows: pairs of tokens are packed to bf16 and transposed by stmatrix on their way to shared memory,
// from where whole rows leave. Gate and up rows alternate in blocks of 8, so both factors of a SwiGLU
// result are in one thread.
#pragma once
#include <cuda_bf16.h>

#include "kernels/w4_gemm/smem.cuh"
#include "kernels/w4_gemm/w4_gemm.h"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"
#include "ptx/sync.cuh"
#include "tile/activation.cuh"
#include "tile/int4.cuh"
#include "tile/swizzle.h"
#include "tile/vector.cuh"

namespace l4k {

// The lane's place in a warpgroup.
struct W4Lane {
  int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
};

// Where a warpgroup's results go.
struct W4Place {
  const RaggedTile& tile;
  int first_row;  // of the weight, of the warpgroup's 64
  char* staging;  // its own
  int barrier;    // named, of its threads

  __device__ __forceinline__ void sync() const { ptx::named_barrier_sync(barrier, 128); }
};

template <int kSums>
__device__ __forceinline__ void scale_and_bias(float (&sums)[kSums], const W4GemmParams& p,
                                               const W4Place& at) {
  constexpr float factors[2] = {kInt4Factors[0], kInt4Factors[1]};
  const W4Lane lane;
  const int channel = at.first_row + 16 * lane.warp + lane.g, row = at.tile.row + 2 * lane.c;
  const auto* biases = static_cast<const __nv_bfloat16*>(p.epilogue.bias);
  float bias[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (biases != nullptr && channel + 8 * h < p.n)
      bias[h] = __bfloat162float(biases[channel + 8 * h]);
  const float* scales = p.epilogue.row_scale + row;
  const int left = p.epilogue.row_scale != nullptr ? at.tile.row_end - row : 0;
#pragma unroll
  for (int r = 0; r < kSums; r += 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float scale = 2 * r + i < left ? scales[2 * r + i] : 1.f;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& sum = sums[r + 2 * h + i];
        sum = sum * (scale * factors[h]) + bias[h];
      }
    }
  }
}

// A rolled loop: unrolled, the error function would be most of the kernel's code. It works on the
// thread's own words of the staging buffer.
template <int kStaged, int kSums>
__device__ __forceinline__ void gelu(float (&sums)[kSums], const W4Place& at) {
  constexpr int kRound = kStaged / 4 / 128;
  float* own = reinterpret_cast<float*>(at.staging) + threadIdx.x % 128;
  at.sync();  // what was there before has left
#pragma unroll
  for (int first = 0; first < kSums; first += kRound) {
#pragma unroll
    for (int r = 0; r < kRound; ++r) own[128 * r] = sums[first + r];
#pragma unroll 1
    for (int r = 0; r < kRound; ++r) own[128 * r] = gelu(own[128 * r]);
#pragma unroll
    for (int r = 0; r < kRound; ++r) sums[first + r] = own[128 * r];
  }
}

// The results become the first half of the sums, still in pairs of tokens.
template <int kSums>
__device__ __forceinline__ void swiglu(float (&sums)[kSums]) {
#pragma unroll
  for (int r = 0; r < kSums; ++r) {
    if (r % 4 < 2) sums[r / 4 * 2 + r % 2] = silu(sums[r]) * sums[r + 2];
  }
}

// Rounds through the staging buffer. Results are pairs of tokens, of 8 tokens x 8 channels each. Four
// pairs of bf16 are a quad of 16 tokens x 64 channels of the warpgroup, or, of SwiGLU, 32 x 32; two
// pairs of float32 are half of that: 2 KB each.
template <int I>
struct W4Rounds {
  static constexpr W4GemmConfig C = kW4GemmConfigs[I];
  static constexpr int kSums = C.block_m / 2, kMostQuads = kSums / 8;
  static constexpr int kRound = C.staging_bytes() / 2048;  // quads, or halves
  const W4GemmParams& p;
  const W4Place& at;
  int halved;  // 1 of SwiGLU, else 0

  __device__ __forceinline__ int quads() const { return kMostQuads >> halved; }
  __device__ __forceinline__ int columns() const { return p.n >> halved; }

  // Calls `move(chunk in the round, row, column, D has it)` for a thread's chunks of 16 bytes, in a
  // round that begins with a token of the tile.
  template <int kElements, typename Move>
  __device__ __forceinline__ void each(int first_token, Move move) const {
    const int log_chunks = (kElements == 8 ? 3 : 4) - halved;  // of a token
#pragma unroll 2
    for (int chunk = threadIdx.x % 128; chunk < C.staging_bytes() / 16; chunk += 128) {
      const int row = at.tile.row + first_token + (chunk >> log_chunks);
      const int within = (chunk & ((1 << log_chunks) - 1)) * kElements;
      const int column = (at.first_row >> halved) + within;
      move(chunk, row, column, row < at.tile.row_end && column < columns());
    }
  }

  // bf16: [token][channel] in the 128-byte swizzle. This lane's row of the quad's four matrices, which
  // lie at the same place in every quad of 2 KB.
  __device__ __forceinline__ char* matrices() const {
    const W4Lane lane;
    const int matrix = threadIdx.x % 32 / 8, row = threadIdx.x % 8;
    const int offset = halved ? (8 * matrix + row) * 64 + lane.warp * 16
                              : (matrix / 2 * 8 + row) * 128 + lane.warp * 32 + matrix % 2 * 16;
    return at.staging + swizzle_128(offset);
  }

  __device__ __forceinline__ void add_residual(float (&sums)[kSums]) const {
    const auto* residual = static_cast<const __nv_bfloat16*>(p.epilogue.residual);
    char* rows = matrices();
#pragma unroll
    for (int first = 0; first < kMostQuads; first += kRound) {
      if (first >= quads()) break;
      at.sync();  // what was there before has left
      each<8>(16 * first << halved, [&](int chunk, int row, int column, bool exists) {
        uint4 values = {};
        if (exists)
          values =
              *reinterpret_cast<const uint4*>(residual + row * p.epilogue.residual_stride + column);
        *reinterpret_cast<uint4*>(at.staging + swizzle_128(16 * chunk)) = values;
      });
      at.sync();
#pragma unroll
      for (int quad = 0; quad < kRound && first + quad < kMostQuads; ++quad) {
        if (first + quad >= quads()) break;
        uint32_t pairs[4];
        ptx::ldmatrix_x4<true>(pairs, ptx::smem_address(rows + 2048 * quad));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 pair = __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(pairs[i]));
          sums[8 * (first + quad) + 2 * i] += pair.x;
          sums[8 * (first + quad) + 2 * i + 1] += pair.y;
        }
      }
    }
  }

  __device__ __forceinline__ void store_bf16(const float (&sums)[kSums]) const {
    auto* d = static_cast<__nv_bfloat16*>(p.epilogue.d);
    char* rows = matrices();
#pragma unroll
    for (int first = 0; first < kMostQuads; first += kRound) {
      if (first >= quads()) break;
      at.sync();  // what was there before has left
#pragma unroll
      for (int quad = 0; quad < kRound && first + quad < kMostQuads; ++quad) {
        if (first + quad >= quads()) break;
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = 8 * (first + quad) + 2 * i;
          pairs[i] = pack_pair(sums[r], sums[r + 1]);
        }
        ptx::stmatrix_x4<true>(rows + 2048 * quad, pairs[0], pairs[1], pairs[2], pairs[3]);
      }
      at.sync();
      each<8>(16 * first << halved, [&](int chunk, int row, int column, bool exists) {
        if (!exists) return;
        *reinterpret_cast<uint4*>(d + int64_t{row} * columns() + column) =
            *reinterpret_cast<const uint4*>(at.staging + swizzle_128(16 * chunk));
      });
    }
  }

  // float32: [token][channel], where tokens 2 c and 2 c + 1 of every 8 have their channels' bits 3 and 4
  // flipped by c: the lanes of a warp then write to 32 banks.
  __device__ __forceinline__ void store_float32(const float (&sums)[kSums]) const {
    const W4Lane lane;
    auto* staged = reinterpret_cast<float*>(at.staging);
    auto* d = static_cast<float*>(p.epilogue.d);
    const int pitch = 64 >> halved;
    float* own[2];  // of the pairs of half a quad
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = (halved ? 8 * i : 0) + 2 * lane.c;
      const int channel = (16 >> halved) * lane.warp + (halved ? 0 : 8 * i) + lane.g;
      own[i] = staged + token * pitch + (channel ^ 8 * lane.c);
    }
#pragma unroll
    for (int first = 0; first < 2 * kMostQuads; first += kRound) {
      if (first >= 2 * quads()) break;
      at.sync();  // what was there before has left
#pragma unroll
      for (int half = 0; half < kRound && first + half < 2 * kMostQuads; ++half) {
        if (first + half >= 2 * quads()) break;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          own[i][512 * half] = sums[4 * (first + half) + 2 * i];
          own[i][512 * half + pitch] = sums[4 * (first + half) + 2 * i + 1];
        }
      }
      at.sync();
      each<4>(8 * first << halved, [&](int chunk, int row, int column, bool exists) {
        if (!exists) return;
        const int token = chunk >> (4 - halved), channel = 4 * chunk & (pitch - 1);
        *reinterpret_cast<float4*>(d + int64_t{row} * columns() + column) =
            *reinterpret_cast<const float4*>(staged + token * pitch +
                                             (channel ^ token / 2 % 4 * 8));
      });
    }
  }
};

// All of the above for 64 weight rows, by their warpgroup.
template <int I, int kSums>
__device__ __forceinline__ void finish(float (&sums)[kSums], const W4GemmParams& p,
                                       const W4Place& at) {
  scale_and_bias(sums, p, at);
  const bool halved = p.epilogue.activation == Activation::kSwiglu;
  if (halved) swiglu(sums);
  if (p.epilogue.activation == Activation::kGelu) gelu<kW4GemmConfigs[I].staging_bytes()>(sums, at);
  const W4Rounds<I> rounds{p, at, halved};
  if (p.epilogue.residual != nullptr) rounds.add_residual(sums);
  if (p.epilogue.out_float32) rounds.store_float32(sums);
  else rounds.store_bf16(sums);
}

// Rows that no expert owns come out as zeros. By the consumers.
__device__ __forceinline__ void clear_tail(const W4GemmParams& p, int first_row) {
  const int columns = p.epilogue.activation == Activation::kSwiglu ? p.n / 2 : p.n;
  const int64_t vectors = int64_t{columns} * (p.epilogue.out_float32 ? 4 : 2) / 16;
  const int64_t first = int64_t{blockIdx.x} * kW4Consumers + threadIdx.x - 128;
  auto* d = static_cast<uint4*>(p.epilogue.d);
  for (int64_t i = first_row * vectors + first; i < p.m * vectors; i += gridDim.x * kW4Consumers)
    d[i] = make_uint4(0, 0, 0, 0);
}

}  // namespace l4k
