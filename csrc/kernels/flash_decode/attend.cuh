// One warp's share of a work item: 16 rows against blocks of 16 keys, and how warps add up.
//
// Registers follow mma.m16n8k16: with g = lane / 4 and c = lane % 4 a lane has rows g and g + 8 of
// the warp's row tile. Head dimensions appear in an order of their own where that saves moving
// bytes: e4m3 comes four at a time, so K steps and columns are interleaved in fours (q is loaded to
// match, out is stored to match).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/flash_decode/item.cuh"
#include "ptx/arithmetic.cuh"
#include "ptx/mma.cuh"
#include "tile/f16.cuh"
#include "tile/vector.cuh"

namespace l4k {

constexpr int kDecodeColumns = kDecodeHeadDim / 8;  // tiles of eight head dimensions

template <bool kFp8>
struct Attend {
  using Element = std::conditional_t<kFp8, __half, __nv_bfloat16>;  // e4m3 becomes f16: exact

  uint32_t q[kDecodeHeadDim / 16][4];
  float acc[kDecodeColumns][4];  // weighted sums of values, relative to `maximum`
  float maximum[2], sum[2];      // of rows g and g + 8; `sum` is the lane's part
  float scale[2];

  // Rows are (token, head of the group); those past the last are zeros.
  template <typename Tokens>
  __device__ __forceinline__ void load_queries(const DecodeItem& item, const Tokens& tokens,
                                               int first_row) {
    const FlashDecodeParams& p = item.p;
    const int c = threadIdx.x % 4;
    const float k_scale = p.k_scale == nullptr ? 1.f : p.k_scale[item.kv_head];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + threadIdx.x % 32 / 4 + half * 8;
      const bool exists = row < item.end_row();
      const __nv_bfloat16* from = tokens.query(item, row);
#pragma unroll
      for (int k = 0; k < kDecodeHeadDim / 16; ++k) {
        uint2 four{0, 0};
        if constexpr (kFp8) {
          if (exists) four = *reinterpret_cast<const uint2*>(from + k * 16 + 4 * c);
        } else if (exists) {
          four.x = *reinterpret_cast<const uint32_t*>(from + k * 16 + 2 * c);
          four.y = *reinterpret_cast<const uint32_t*>(from + k * 16 + 8 + 2 * c);
        }
        q[k][half] = four.x;
        q[k][half + 2] = four.y;
      }
      scale[half] = p.softmax_scale_log2 * k_scale;
      if constexpr (kFp8) scale[half] *= to_f16(half);
    }
  }

  // A row of q in the range of f16. Returns what undoes that.
  __device__ __forceinline__ float to_f16(int half) {
    uint32_t amax = 0;
#pragma unroll
    for (auto& step : q)
      for (uint32_t word : {step[half], step[half + 2]})
        amax = max(amax, max(word & 0x7fff0000, word << 16 & 0x7fff0000));
    amax = warp_max<4>(amax);
    const PowerOfTwo range = f16_range(amax);
#pragma unroll
    for (auto& step : q)
      for (uint32_t* word : {&step[half], &step[half + 2]})
        *word = pack_pair<Element>(__uint_as_float(*word << 16) * range.up,
                                   __uint_as_float(*word & 0xffff0000) * range.up);
    return range.down;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& tile : acc)
      for (float& value : tile) value = 0.f;
#pragma unroll
    for (int half = 0; half < 2; ++half) maximum[half] = kMinusInfinity, sum[half] = 0;
  }

  // The key, and the value, of a block whose row in shared memory the lane names.
  __device__ __forceinline__ static int key_row() {
    return threadIdx.x % 32 / 16 * 8 + threadIdx.x % 8;
  }
  __device__ __forceinline__ static int value_row() { return threadIdx.x % 16; }

  // s[n][i]: row g + i / 2 * 8, key 8n + 2c + i % 2 of the block of which key_row() is at `row`.
  __device__ __forceinline__ void scores(uint32_t row, float (&s)[2][4]) const {
    constexpr int kRowBytes = DecodeSmem<kFp8>::kRowBytes;
    const int lane = threadIdx.x % 32;
    float odd[2][4] = {};  // a second set of sums halves the chain of dependent products
#pragma unroll
    for (auto& tile : s)
      for (float& value : tile) value = 0.f;
#pragma unroll
    for (int pair = 0; pair < kRowBytes / 32; ++pair) {  // of 16-byte chunks
      uint32_t k[4];
      const int chunk = (2 * pair + lane / 8 % 2) ^ (lane % 8);
      ptx::ldmatrix_x4<false>(k, row + chunk * 16);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if constexpr (kFp8) {
          uint32_t b[4];
          ptx::e4m3_to_f16(k[2 * n], b[0], b[1]);
          ptx::e4m3_to_f16(k[2 * n + 1], b[2], b[3]);
          ptx::mma_m16n8k16<Element>(s[n], q[2 * pair], b[0], b[1]);
          ptx::mma_m16n8k16<Element>(odd[n], q[2 * pair + 1], b[2], b[3]);
        } else {
          ptx::mma_m16n8k16<Element>(pair % 2 ? odd[n] : s[n], q[pair], k[2 * n], k[2 * n + 1]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = (s[n][i] + odd[n][i]) * scale[i / 2];
  }

  // Scores of keys that the row does not see become -inf.
  __device__ __forceinline__ static void mask(const TileSpan (&seen)[2], int first_key,
                                              float (&s)[2][4]) {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first_key + 8 * n + threadIdx.x % 4 * 2 + i % 2;
        if (key < seen[i / 2].first || key >= seen[i / 2].end) s[n][i] = kMinusInfinity;
      }
  }

  // Scores to weights: 2^(s - maximum), packed as the A operand of the second product.
  __device__ __forceinline__ void weights(const float (&s)[2][4], uint32_t (&w)[4]) {
    float base[2], rescale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * half;
      float top = fmaxf(fmaxf(s[0][i], s[0][i + 1]), fmaxf(s[1][i], s[1][i + 1]));
      top = fmaxf(warp_max<4>(top), maximum[half]);
      base[half] = top == kMinusInfinity ? 0.f : top;
      rescale[half] = ptx::exp2_approx(maximum[half] - base[half]);
      maximum[half] = top;
      sum[half] *= rescale[half];
    }
    // After the first tiles a maximum seldom moves, and then nothing has to be multiplied by 1.
    if (__any_sync(0xffffffff, rescale[0] != 1.f || rescale[1] != 1.f)) {
#pragma unroll
      for (auto& tile : acc)
#pragma unroll
        for (int i = 0; i < 4; ++i) tile[i] *= rescale[i / 2];
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float a = ptx::exp2_approx(s[n][2 * half] - base[half]);
        const float b = ptx::exp2_approx(s[n][2 * half + 1] - base[half]);
        sum[half] += a + b;
        w[2 * n + half] = pack_pair<Element>(a, b);
      }
  }

  // Of the block of which value_row() is at `row`.
  __device__ __forceinline__ void add_values(uint32_t row, const uint32_t (&w)[4]) {
    constexpr int kRowBytes = DecodeSmem<kFp8>::kRowBytes;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int pair = 0; pair < kRowBytes / 32; ++pair) {
      uint32_t v[4];  // chunk 2 pair: keys 0-7, 8-15; chunk 2 pair + 1: keys 0-7, 8-15
      const int chunk = (2 * pair + lane / 16) ^ (lane % 8);
      ptx::ldmatrix_x4<true>(v, row + chunk * 16);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if constexpr (kFp8) {
          // Two dimensions of two keys in each word: dimensions apart, keys together.
          uint32_t even[2], odd[2];
#pragma unroll
          for (int k = 0; k < 2; ++k)
            ptx::e4m3_to_f16(__byte_perm(v[2 * n + k], 0, 0x3120), even[k], odd[k]);
          ptx::mma_m16n8k16<Element>(acc[4 * pair + 2 * n], w, even[0], even[1]);
          ptx::mma_m16n8k16<Element>(acc[4 * pair + 2 * n + 1], w, odd[0], odd[1]);
        } else {
          ptx::mma_m16n8k16<Element>(acc[2 * pair + n], w, v[2 * n], v[2 * n + 1]);
        }
      }
    }
  }

  // Adds up the warps that share rows. Each hands away half of its columns and takes in the other
  // half of a partner's, so that with n warps each ends with 1 / n of the columns, in acc[0...],
  // and all with the rows' maximum and sum. The order of additions is fixed.
  __device__ __forceinline__ void merge(DecodeSmem<kFp8>& smem, int row_warps) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int key_warps = kDecodeConsumers / row_warps, row_tile = warp % row_warps;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] = warp_sum<4>(sum[half]);
      if (lane % 4 == 0) smem.state[warp][lane / 4 + 8 * half] = {maximum[half], sum[half]};
    }
    if (key_warps == 1) return;
    decode_consumers_sync();
    float rescale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float mine = maximum[half];
      for (int w = row_tile; w < kDecodeConsumers; w += row_warps)
        maximum[half] = fmaxf(maximum[half], smem.state[w][lane / 4 + 8 * half].x);
      const float base = maximum[half] == kMinusInfinity ? 0.f : maximum[half];
      sum[half] = 0.f;
      for (int w = row_tile; w < kDecodeConsumers; w += row_warps) {
        const float2 other = smem.state[w][lane / 4 + 8 * half];
        sum[half] += other.y * ptx::exp2_approx(other.x - base);
      }
      rescale[half] = ptx::exp2_approx(mine - base);
    }
#pragma unroll
    for (auto& tile : acc)
#pragma unroll
      for (int i = 0; i < 4; ++i) tile[i] *= rescale[i / 2];
    exchange<8>(&smem.wide[0][0], kDecodeConsumers / 2);
    if (key_warps == kDecodeConsumers) exchange<4>(&smem.narrow[0][0], kDecodeConsumers / 4);
  }

  // The first of the column tiles that a warp has after merge().
  __device__ __forceinline__ static int first_column(int warp, int row_warps) {
    int first = 0;
    for (int bit = kDecodeConsumers / 2, tiles = kDecodeColumns / 2; bit >= row_warps;
         bit /= 2, tiles /= 2)
      if (warp & bit) first += tiles;
    return first;
  }

 private:
  // Keeps kTiles of 2 * kTiles column tiles: the upper ones if the warp's bit is set.
  template <int kTiles>
  __device__ __forceinline__ void exchange(float* buffer, int bit) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool upper = warp & bit;
    float4* mine = reinterpret_cast<float4*>(buffer) + warp * kTiles * 32 + lane;
    const float4* theirs = reinterpret_cast<float4*>(buffer) + (warp ^ bit) * kTiles * 32 + lane;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float give[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        give[i] = upper ? acc[t][i] : acc[t + kTiles][i];
        acc[t][i] = upper ? acc[t + kTiles][i] : acc[t][i];
      }
      mine[t * 32] = {give[0], give[1], give[2], give[3]};
    }
    decode_consumers_sync();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const float4 take = theirs[t * 32];
      acc[t][0] += take.x, acc[t][1] += take.y, acc[t][2] += take.z, acc[t][3] += take.w;
    }
  }
};

}  // namespace l4k
