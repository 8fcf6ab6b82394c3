// O = softmax(scale * Q K^T + mask) V over a paged cache; a tile is 128 rows of tokens x heads.
//
//   warpgroup 0                          warpgroups 1, 2: 64 rows of the tile each
//   warp 0: Q, then K0 K1 V0 K2 V1 ...   S = Q K_j, O += P V_(j-1) in flight; softmax of S; P
//   warps 1-3, e4m3 only: to bf16        ... -> O / sum -> staging -> global
//
// barrier       arrives                       waits       promises
// q_full        producer, and TMA's bytes     consumers   Q of the item
// q_empty       each consumer warp            producer    its last product with Q is done
// ring.full     producer and TMA's bytes, or  consumers   a tile of K or V in bf16
//               each converting warp
// ring.empty    each consumer warp            producer or converters
// raw.full      producer, and TMA's bytes     converters  a tile of K or V in e4m3
// raw.empty     each converting warp          producer
// named 1       both consumers                both        rows of V that nobody sees are zero
// named 2, 3    the other consumer            a consumer  its turn to feed the tensor cores
//
// Persistent: CTA c takes its items from the list of plan.cuh in snake order; every role walks the
// same list. See docs/kernels/flash_prefill.md.
#pragma once
#include <cuda.h>

#include "kernels/flash_prefill/flash_prefill.h"
#include "kernels/flash_prefill/loads.cuh"
#include "kernels/flash_prefill/schedule.h"
#include "kernels/flash_prefill/softmax.cuh"
#include "ptx/memory.cuh"
#include "ptx/wgmma.cuh"
#include "tile/swizzle.h"

namespace l4k {

constexpr int kPrefillThreads = 384;
constexpr int kConsumers = 256;

// Zeroes the rows of a V tile outside `keep`: weights of 0 would not stop a NaN there. Both
// consumers share the work; K needs none of it, since the mask replaces its products.
__device__ __forceinline__ void clear_rows(char (&v)[2][kHalfTile], TileSpan keep) {
  const int thread = threadIdx.x - (kPrefillThreads - kConsumers);
#pragma unroll
  for (int row = thread / 8; row < kPrefillKeys; row += kConsumers / 8) {
    if (keep.first <= row && row < keep.end) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<uint4*>(&v[half][row * 128 + thread % 8 * 16]) = make_uint4(0, 0, 0, 0);
  }
  ptx::fence_proxy_async();
  ptx::named_barrier_sync(1, kConsumers);
}

// The two rows of a thread.
struct PrefillRows {
  int token[2];  // in the tile, may be past its end
  int head[2];   // of the KV head's group
  Span keys[2];
  bool broken[2];  // sees a page that the cache does not have
};

__device__ __forceinline__ PrefillRows prefill_rows(const PrefillTile& tile, int first_row,
                                                    int group, int64_t chunk) {
  PrefillRows rows;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row + threadIdx.x % 32 / 4 + 8 * h;
    rows.token[h] = row / group;
    rows.head[h] = row % group;
    rows.keys[h] = visible_keys(tile.queries.first + rows.token[h], chunk);
    rows.broken[h] = false;
  }
  return rows;
}

// One consumer warpgroup.
template <bool kFp8>
struct PrefillConsumer {
  PrefillSmem<kFp8>& smem;
  const FlashPrefillParams& p;
  const int consumer;  // 0, 1
  const int warp;      // of both consumers: 0 ... 7
  Stage<PrefillSmem<kFp8>::kStages> stage{};
  uint32_t item_phase = 0;

  __device__ __forceinline__ void arrive(uint64_t* barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(barrier);
  }

  // S = Q K^T.
  __device__ __forceinline__ void scores(float (&s)[64], int index) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t q = ptx::smem_descriptor_sw128(smem.q[half] + consumer * 64 * 128);
      const uint64_t k = ptx::smem_descriptor_sw128(smem.kv[index][half]);
#pragma unroll
      for (int i = 0; i < 4; ++i)  // 16 of D are 32 bytes, 2 units of the descriptor
        ptx::Wgmma<128, __nv_bfloat16>::ss(s, q + 2 * i, k + 2 * i, half + i > 0);
    }
    ptx::wgmma_commit();
  }

  // O += P V.
  __device__ __forceinline__ void weighted(float (&o)[64], const uint32_t (&weights)[8][4],
                                           int index, bool accumulate) {
    const uint64_t v = ptx::smem_descriptor_sw128_transposed(smem.kv[index][0], kHalfTile);
#pragma unroll
    for (int i = 0; i < 8; ++i)  // 16 keys are 16 rows of 128 bytes
      ptx::WgmmaRegisterA<128>::rs(o, weights[i], v + i * (16 * 128 / 16), accumulate || i > 0);
    ptx::wgmma_commit();
  }

  // Masks S where the tile of keys is not visible to all, and notes pages that do not exist.
  __device__ __forceinline__ void mask_scores(float (&s)[64], PrefillRows& rows,
                                              const PrefillTile& tile, int64_t key_tile,
                                              uint32_t bad_pieces) {
    if (tile.tiles.is_whole(key_tile) && bad_pieces == 0) return;
    TileSpan seen[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      seen[h] = within_tile(rows.keys[h], key_tile * kPrefillKeys, kPrefillKeys);
      for (int i = seen[h].first / smem.piece; bad_pieces != 0 && i * smem.piece < seen[h].end; ++i)
        rows.broken[h] |= seen[h].first < seen[h].end && (bad_pieces >> i & 1);
    }
    mask(s, seen);
  }

  // V must be there and hold zeros wherever no query of the tile looks.
  __device__ __forceinline__ void await_values(const Stage<PrefillSmem<kFp8>::kStages>& at,
                                               const PrefillTile& tile, int64_t key_tile) {
    smem.ring.wait_full(at);
    const TileSpan keep = within_tile(tile.keys, key_tile * kPrefillKeys, kPrefillKeys);
    // Pieces that nobody sees have come as zeros.
    if (keep.first % smem.piece != 0 || keep.end % smem.piece != 0)
      clear_rows(smem.kv[at.index], keep);
  }

  // All keys of one item; leaves O unnormalised.
  __device__ __forceinline__ void attend(float (&o)[64], OnlineSoftmax& softmax, PrefillRows& rows,
                                         const PrefillTile& tile) {
    const int64_t first = tile.tiles.touched.first;
    const int count = static_cast<int>(tile.tiles.touched.end - first);
    float s[64], decay[2];
    uint32_t weights[8][4];
    smem.ring.wait_full(stage);
    uint32_t bad = smem.bad[stage.index];
    ptx::wgmma_fence();
    scores(s, stage.index);
    ptx::wgmma_wait<0>();
    arrive(&smem.ring.empty[stage.index]);
    stage.advance();
    mask_scores(s, rows, tile, first, bad);
    softmax.step(s, decay);
    to_operand<8>(s, weights);
#pragma unroll 1
    for (int j = 1; j < count; ++j) {
      const auto k_stage = stage;
      stage.advance();
      const auto v_stage = stage;
      stage.advance();
      smem.ring.wait_full(k_stage);
      bad = smem.bad[k_stage.index];
      await_values(v_stage, tile, first + j - 1);
      // While one warpgroup's products run, the other computes its softmax.
      ptx::named_barrier_sync(2 + consumer, kConsumers);
      ptx::wgmma_fence();
      scores(s, k_stage.index);
      weighted(o, weights, v_stage.index, j > 1);
      ptx::named_barrier_arrive(3 - consumer, kConsumers);
      ptx::wgmma_wait<1>();  // S
      arrive(&smem.ring.empty[k_stage.index]);
      mask_scores(s, rows, tile, first + j, bad);
      softmax.step(s, decay);
      ptx::wgmma_wait<0>();  // O, and the weights' registers
      arrive(&smem.ring.empty[v_stage.index]);
#pragma unroll
      for (int r = 0; r < 64; ++r) o[r] *= decay[r / 2 % 2];
      to_operand<8>(s, weights);
    }
    arrive(&smem.q_empty);
    await_values(stage, tile, first + count - 1);
    ptx::wgmma_fence();
    weighted(o, weights, stage.index, count > 1);
    ptx::wgmma_wait<0>();
    arrive(&smem.ring.empty[stage.index]);
    stage.advance();
  }

  // Normalises, and stores whole rows of 256 bytes by way of this warp's staging buffer.
  __device__ __forceinline__ void store(const float (&o)[64], const OnlineSoftmax& softmax,
                                        const PrefillRows& rows, const PrefillTile& tile, int row,
                                        int kv_head) {
    const int lane = threadIdx.x % 32, group = p.num_heads / p.kv_heads;
    const float v_scale = p.v_scale != nullptr ? p.v_scale[kv_head] : 1.f;
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool nothing = rows.broken[h] || softmax.sum[h] == 0.f;
      factor[h] = nothing ? 0.f : v_scale / softmax.sum[h];
      if (lane % 4 == 0 && rows.token[h] < tile.tokens) {
        const int64_t head = int64_t{kv_head} * group + rows.head[h];
        p.lse[head * p.rows + row + rows.token[h]] =
            rows.broken[h] ? kMinusInfinity : softmax.lse(h);
      }
    }
    char(&staging)[2][16 * 128] = smem.out[warp];
    __syncwarp();  // the last item's values have been read
#pragma unroll
    for (int block = 0; block < 8; ++block) {  // 16 columns
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // A select, not a product: a row of nothing may hold NaN.
        const float f = factor[i % 2], a = o[8 * block + 2 * i], b = o[8 * block + 2 * i + 1];
        packed[i] = f == 0.f ? 0 : pack_pair(a * f, b * f);
      }
      const uint32_t offset = lane % 16 * 128 + block % 4 * 32 + lane / 16 * 16;
      ptx::stmatrix_x4(&staging[block / 4][swizzle_128(offset)], packed[0], packed[1], packed[2],
                       packed[3]);
    }
    __syncwarp();
    auto* out = static_cast<uint4*>(p.out);
    const int chunk = lane % 16;  // of 16 bytes
#pragma unroll
    for (int i = lane / 16; i < 16; i += 2) {
      const int token = (warp * 16 + i) / group, head = (warp * 16 + i) % group;
      if (token >= tile.tokens) continue;
      const uint32_t offset = swizzle_128(i * 128 + chunk % 8 * 16);
      const int64_t to = int64_t{row + token} * p.num_heads + kv_head * group + head;
      ptx::store_streaming(&out[to * 16 + chunk],
                           *reinterpret_cast<const uint4*>(&staging[chunk / 8][offset]));
    }
  }

  __device__ __forceinline__ void operator()(const PrefillWork& work) {
    const int group = p.num_heads / p.kv_heads;
    const PrefillTile& tile = work.tile;
    PrefillRows rows = prefill_rows(tile, warp * 16, group, p.chunk);
    constexpr float kLog2E = 1.4426950408889634f;
    const float k_scale = p.k_scale != nullptr ? p.k_scale[work.kv_head] : 1.f;
    OnlineSoftmax softmax(p.softmax_scale * kLog2E * k_scale);
    float o[64];
    if (tile.keys.empty()) {
#pragma unroll
      for (int r = 0; r < 64; ++r) o[r] = 0.f;
    } else {
      ptx::mbarrier_wait(&smem.q_full, item_phase);
      item_phase ^= 1;
      attend(o, softmax, rows, tile);
      softmax.finish();
    }
    store(o, softmax, rows, tile, work.row, work.kv_head);
  }
};

// Rows that no sequence owns.
__device__ __forceinline__ void clear_tail(const FlashPrefillParams& p, int first_row) {
  const int64_t thread = int64_t{blockIdx.x} * kPrefillThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kPrefillThreads, row_vectors = p.num_heads * 16;
  auto* out = static_cast<uint4*>(p.out);
  for (int64_t i = first_row * row_vectors + thread; i < p.rows * row_vectors; i += threads)
    out[i] = make_uint4(0, 0, 0, 0);
  for (int head = 0; head < p.num_heads; ++head)
    for (int64_t row = first_row + thread; row < p.rows; row += threads)
      p.lse[int64_t{head} * p.rows + row] = kMinusInfinity;
}

template <bool kFp8>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    flash_prefill_kernel(const __grid_constant__ CUtensorMap map_q,
                         const __grid_constant__ CUtensorMap map_k,
                         const __grid_constant__ CUtensorMap map_v,
                         const __grid_constant__ FlashPrefillParams p) {
  extern __shared__ char dynamic_smem[];
  auto& smem = *reinterpret_cast<PrefillSmem<kFp8>*>(
      (reinterpret_cast<uintptr_t>(dynamic_smem) + 1023) & ~uintptr_t{1023});
  static_assert(sizeof(PrefillSmem<kFp8>) + 1024 <= 227 * 1024);

  smem.init(p);
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  __syncthreads();
  const auto& plan = *reinterpret_cast<const PrefillPlan*>(p.plan);
  clear_tail(p, plan.rows);
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  if (warpgroup == 0) {
    ptx::registers_decrease<56>();
    if (warp == 0) {
      for_each_item(p, PrefillProducer<kFp8>{smem, p, map_q, map_k, map_v});
    } else if constexpr (kFp8) {
      for_each_item(p, PrefillConverter{smem, warp - 1});
    }
  } else {
    ptx::registers_increase<224>();
    if (warpgroup == 2) ptx::named_barrier_arrive(2, kConsumers);  // the first turn
    for_each_item(p, PrefillConsumer<kFp8>{smem, p, warpgroup - 1, warp - 4});
    if (warpgroup == 1) ptx::named_barrier_sync(2, kConsumers);  // takes back the last one
  }
}

}  // namespace l4k
