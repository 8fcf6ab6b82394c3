// O = softmax(scale * Q K^T + mask) V over a paged cache; a tile is 128 rows of tokens x heads.
//
//   warpgroup 0                          warpgroups 1, 2: 64 rows of the tile each
//   warp 0: Q, then K0 K1 V0 K2 V1 ...   S = Q K_j, O += P V_(j-1) in flight; softmax of S; P
//   warps 1-3, e4m3 only: to f16         ... -> O / sum -> staging -> global
//
// barrier       arrives                       waits       promises
// q_full        producer, and TMA's bytes     consumers   the item and its Q
// q_empty       each consumer warp            producer    it needs Q no more
// ring.full     producer and TMA's bytes, or  consumers   a tile of K or V
//               each converting warp
// ring.empty    each consumer warp            producer or converters
// raw.full      producer, and TMA's bytes     converters  a tile of K or V in e4m3
// raw.empty     each converting warp          producer
// named 1       both consumers                both        rows of V that nobody sees are zero
// named 2, 3    the other consumer            a consumer  its turn to feed the tensor cores
// named 4, 5    a consumer, e4m3 only         the same    its rows of Q are f16
//
// Persistent: CTA c takes its pieces from the list of plan.cuh in snake order; the producer hands
// them on. A piece that is not all of its item leaves a partial result (merge.cuh). See
// docs/kernels/flash_prefill.md.
#pragma once
#include <cuda.h>

#include "kernels/flash_prefill/anchor.cuh"
#include "kernels/flash_prefill/loads.cuh"
#include "kernels/flash_prefill/softmax.cuh"
#include "ptx/memory.cuh"
#include "ptx/wgmma.cuh"
#include "tile/swizzle.h"

namespace l4k {

constexpr int kPrefillThreads = 384;
constexpr int kConsumers = AnchoredSums::kThreads;

// Ids of named barriers; 0 is __syncthreads'.
enum PrefillBarrier : int {
  kBarrierCleared = 1,
  kBarrierTurn = 2,     // and 3: of one consumer warpgroup each
  kBarrierQueries = 4,  // and 5: the same
};

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
  ptx::named_barrier_sync(kBarrierCleared, kConsumers);
}

// One consumer warpgroup. A thread has the rows `warp * 16 + lane / 4 + 8 h` of a tile.
template <bool kFp8>
struct PrefillConsumer {
  using Smem = PrefillSmem<kFp8>;
  // What the tensor cores multiply: e4m3 fits f16.
  using Element = std::conditional_t<kFp8, __half, __nv_bfloat16>;
  using Softmax = OnlineSoftmax<kFp8 ? 15 : 0>;
  Smem& smem;
  const FlashPrefillParams& p;
  int warp;  // of both consumers: 0 ... 7
  Stage<Smem::kStages> stage{};
  uint32_t items = 0;

  __device__ __forceinline__ void arrive(uint64_t* barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(barrier);
  }

  __device__ __forceinline__ const PrefillWork& work() const { return smem.work[items % 2]; }
  __device__ __forceinline__ int consumer() const { return warp / 4; }
  __device__ __forceinline__ int row(int h) const {
    return warp * 16 + threadIdx.x % 32 / 4 + 8 * h;
  }

  // S = Q K^T.
  __device__ __forceinline__ void scores(float (&s)[64], int index) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t q = ptx::smem_descriptor_sw128(smem.q[half] + consumer() * 64 * 128);
      const uint64_t k = ptx::smem_descriptor_sw128(smem.kv[index][half]);
#pragma unroll
      for (int i = 0; i < 4; ++i)  // 16 of D are 32 bytes, 2 units of the descriptor
        ptx::Wgmma<128, Element>::ss(s, q + 2 * i, k + 2 * i, half + i > 0);
    }
    ptx::wgmma_commit();
  }

  // O += P V.
  __device__ __forceinline__ void weighted(float (&o)[64], const uint32_t (&weights)[8][4],
                                           int index) {
    const uint64_t v = ptx::smem_descriptor_sw128_transposed(smem.kv[index][0], kHalfTile);
#pragma unroll
    for (int i = 0; i < 8; ++i)  // 16 keys are 16 rows of 128 bytes
      ptx::WgmmaRegisterA<128, Element>::template rs<true>(o, weights[i], v + i * (16 * 128 / 16),
                                                           true);
    ptx::wgmma_commit();
  }

  // Masks S where some row of the tile does not see all of the keys; notes in bit h of `broken`
  // that row h sees a page which the cache does not have.
  __device__ __forceinline__ void mask_scores(float (&s)[64], int key_tile, uint32_t bad_boxes,
                                              uint32_t& broken) {
    TileSpan seen[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Span keys = visible_keys(int64_t{work().position} + p.group.quotient(row(h)), p.chunk);
      seen[h] = within_tile(keys, int64_t{key_tile} * kPrefillKeys, kPrefillKeys);
      if (bad_boxes == 0 || seen[h].first == seen[h].end) continue;
      const int slots = box_slots(p.page_size);
      for (int i = seen[h].first / slots; i * slots < seen[h].end; ++i)
        broken |= (bad_boxes >> i & 1) << h;
    }
    mask(s, seen);
  }

  // V must be there and hold zeros wherever no query of the tile looks.
  __device__ __forceinline__ void await_values(const Stage<Smem::kStages>& at, int key_tile) {
    smem.ring.wait_full(at);
    const TileSpan keep = within_tile({work().first_key, work().end_key},
                                      int64_t{key_tile} * kPrefillKeys, kPrefillKeys);
    // Boxes that nobody sees have come as zeros.
    if (((keep.first | keep.end) & (box_slots(p.page_size) - 1)) != 0)
      clear_rows(smem.kv[at.index], keep);
  }

  // S becomes the next weights, against all keys so far. Two calls, since after an optional mask
  // ptxas moves the wait that follows in front of the exponentials, and nothing overlaps.
  __device__ __forceinline__ void softmax_step(float (&s)[64], Softmax& softmax, int key_tile,
                                               uint32_t bad_boxes, float (&rescale)[2],
                                               uint32_t& broken) {
    const bool whole = work().first_whole <= key_tile && key_tile < work().end_whole;
    if (whole && bad_boxes == 0) {
      softmax.step(s, rescale);
    } else {
      mask_scores(s, key_tile, bad_boxes, broken);
      softmax.step(s, rescale);
    }
  }

  // After an item's last scores also Q: the next one comes while the rest of this one is computed.
  __device__ __forceinline__ void release_keys(int index, int key_tile) {
    arrive(&smem.ring.empty[index]);
    if (key_tile + 1 == work().end_tile) arrive(&smem.q_empty);
  }

  // Adds the keys of tiles [tile, end) to O, which stays unnormalised.
  __device__ __forceinline__ void attend(float (&o)[64], Softmax& softmax, uint32_t& broken,
                                         int tile, int end) {
    uint32_t weights[8][4];
    float rescale[2];
    {
      float s[64];
      smem.ring.wait_full(stage);
      const uint32_t bad = smem.bad[stage.phase][stage.index];
      ptx::wgmma_fence();
      scores(s, stage.index);
      ptx::wgmma_wait<0>();
      release_keys(stage.index, tile);
      stage.advance();
      softmax_step(s, softmax, tile, bad, rescale, broken);
      to_operand<Element, 8>(s, weights);
    }
#pragma unroll 1
    for (++tile; tile < end; ++tile) {
      float s[64];
      const auto k_stage = stage;
      stage.advance();
      const auto v_stage = stage;
      stage.advance();
      smem.ring.wait_full(k_stage);
      const uint32_t bad = smem.bad[k_stage.phase][k_stage.index];
      await_values(v_stage, tile - 1);
      // While one warpgroup's products run, the other computes its softmax.
      ptx::named_barrier_sync(kBarrierTurn + consumer(), kConsumers);
      ptx::wgmma_fence();
      scores(s, k_stage.index);
      weighted(o, weights, v_stage.index);
      ptx::named_barrier_arrive(kBarrierTurn + 1 - consumer(), kConsumers);
      ptx::wgmma_wait<1>();  // S
      release_keys(k_stage.index, tile);
      softmax_step(s, softmax, tile, bad, rescale, broken);
      ptx::wgmma_wait<0>();  // O, and the weights' registers
      arrive(&smem.ring.empty[v_stage.index]);
#pragma unroll
      for (int r = 0; r < 64; ++r) o[r] *= rescale[r / 2 % 2];
      to_operand<Element, 8>(s, weights);
    }
    await_values(stage, tile - 1);
    ptx::wgmma_fence();
    weighted(o, weights, stage.index);
    ptx::wgmma_wait<0>();
    arrive(&smem.ring.empty[stage.index]);
    stage.advance();
  }

  // Normalises, and stores whole rows of 256 bytes by way of this warp's staging buffer.
  __device__ __forceinline__ void store(const float (&o)[64], const Softmax& softmax,
                                        uint32_t broken, const PrefillWork& at) {
    const int lane = threadIdx.x % 32;
    const float v_scale = p.v_scale != nullptr ? p.v_scale[at.kv_head] : 1.f;
    float factor[2];
    bool nothing[2];  // to see; keys of weight 0 alone are another thing, and give NaN
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int token = p.group.quotient(row(h));
      const int64_t position = int64_t{at.position} + token;
      nothing[h] = (broken >> h & 1) != 0 || position < 0 || position >= p.capacity();
      const bool counts = fabsf(softmax.base(h, softmax.max[h])) < kLargestBase;
      factor[h] = counts ? v_scale / softmax.sum[h] : kNan;
      if (lane % 4 == 0 && token < at.tokens) {
        const int64_t head = (at.kv_head - token) * p.group.value + row(h);
        p.lse[head * p.rows + at.row + token] = nothing[h] ? kMinusInfinity : softmax.lse(h);
      }
    }
    char (&staging)[2][16 * 128] = smem.out[warp];
    __syncwarp();  // the last item's values have been read
#pragma unroll
    for (int block = 0; block < 8; ++block) {  // 16 columns
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // A select, not a product: a row of nothing may hold NaN.
        const float f = factor[i % 2], a = o[8 * block + 2 * i], b = o[8 * block + 2 * i + 1];
        packed[i] = nothing[i % 2] ? 0 : pack_pair(a * f, b * f);
      }
      const uint32_t offset = lane % 16 * 128 + block % 4 * 32 + lane / 16 * 16;
      ptx::stmatrix_x4(&staging[block / 4][swizzle_128(offset)], packed[0], packed[1], packed[2],
                       packed[3]);
    }
    __syncwarp();
    // Sixteen lanes store a row. Its chunk in the swizzle differs from row to row by constants alone.
    const int vector = lane % 16, even = lane / 16;
    const char* from = staging[vector / 8] + even * 128;
    const uint32_t chunk = (vector % 8 ^ even) * 16;
    uint4 rows[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      rows[i] = *reinterpret_cast<const uint4*>(from + i * 256 + (chunk ^ i % 4 * 32));
    auto* out = ptx::opaque(static_cast<uint4*>(p.out) + vector +
                            (int64_t{at.row} * p.num_heads + at.kv_head * p.group.value) * 16);
    const int others = p.num_heads - p.group.value;  // heads between a token's rows and the next
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = warp * 16 + even + 2 * i, token = p.group.quotient(row);
      if (token < at.tokens) ptx::store_streaming(out + (row + token * others) * 16, rows[i]);
    }
  }

  // Q of a new item is there; for an e4m3 cache it becomes f16, and the scores' scale undoes its own.
  __device__ __forceinline__ void convert_queries(Softmax& softmax) {
    float undo[2];
    queries_to_f16(smem.q, warp, undo);
    softmax.scale[0] *= undo[0];
    softmax.scale[1] *= undo[1];
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(kBarrierQueries + consumer(), kConsumers / 2);
  }

  // All keys of an item, kAnchorTiles tiles after the other.
  __device__ __forceinline__ void attend_all(float (&o)[64], Softmax& softmax, uint32_t& broken) {
    int first = work().first_tile;
    const int end = work().end_tile;
    if (first >= end) return arrive(&smem.q_empty);
    if constexpr (kFp8) convert_queries(softmax);
#pragma unroll 1
    while (first < end) {
      const int stop = min(end - first, kAnchorTiles) + first;
      attend(o, softmax, broken, first, stop);
      const AnchoredSums anchor{reinterpret_cast<float4*>(p.anchors) +
                                blockIdx.x * (AnchoredSums::kWords / 4) + threadIdx.x -
                                (kPrefillThreads - kConsumers)};
      if (first > work().first_tile) anchor.add_to(o, softmax);
      if (stop < end) anchor.put_away(o, softmax);
      first = stop;
    }
  }

  // What merge.cuh adds up: sums of values, relative to the row's maximum.
  __device__ __forceinline__ void store_partial(const float (&o)[64], const Softmax& softmax,
                                                uint32_t broken, const PrefillWork& at) {
    const PrefillPartials partials(p);
    const int column = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (p.group.quotient(row(h)) >= at.tokens) continue;
      const int place = at.slot * kPrefillRows + row(h);
      if (column == 0)
        partials.states[place] = {softmax.base(h, softmax.max[h]),
                                  (broken >> h & 1) != 0 ? -1.f : softmax.sum[h]};
      float* to = partials.values + place * 128 + column;
#pragma unroll
      for (int i = 0; i < 16; ++i)
        *reinterpret_cast<float2*>(to + 8 * i) = {o[4 * i + 2 * h], o[4 * i + 2 * h + 1]};
    }
  }

  __device__ __forceinline__ void run() {
    constexpr float kLog2E = 1.4426950408889634f;
    for (;; ++items) {
      ptx::mbarrier_wait(&smem.q_full, items % 2);
      if (work().row < 0) return;
      warp = ptx::opaque(warp);
      const float k_scale = p.k_scale != nullptr ? p.k_scale[work().kv_head] : 1.f;
      Softmax softmax(p.softmax_scale * kLog2E * k_scale);
      uint32_t broken = 0;
      float o[64];
#pragma unroll
      for (int r = 0; r < 64; ++r) o[r] = 0.f;
      attend_all(o, softmax, broken);
      softmax.finish();
      warp = ptx::opaque(warp);  // again: nothing of the rows' places is kept until here
      if (work().slot < 0) store(o, softmax, broken, work());
      else store_partial(o, softmax, broken, work());
    }
  }
};

// Rows that no sequence owns, by so many threads of every CTA.
template <int kThreads>
__device__ __forceinline__ void clear_tail(const FlashPrefillParams& p, int first_row) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads, row_vectors = p.num_heads * 16;
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
  // An offset to the pointer, not a new pointer: the compiler must still see that it is shared.
  auto& smem = *reinterpret_cast<PrefillSmem<kFp8>*>(dynamic_smem +
                                                     (-ptx::smem_address(dynamic_smem) & 1023));
  static_assert(sizeof(PrefillSmem<kFp8>) + 1024 <= 227 * 1024);

  if (threadIdx.x == 0)
    for (const CUtensorMap* map : {&map_q, &map_k, &map_v}) ptx::prefetch_tensor_map(map);
  smem.init(p);
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  __syncthreads();
  clear_tail<kPrefillThreads>(p, PrefillLists(p).rows);
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  if (warpgroup == 0) {
    ptx::registers_decrease<56>();
    // Asked here: before the roles part it would cost the consumers a move for every score.
    const bool stale = plan_is_stale(p);
    if (stale) clear_tail<128>(p, 0);
    if (warp == 0) {
      PrefillProducer<kFp8> producer{smem, p, map_q, map_k, map_v};
      if (!stale) for_each_work(p, producer);
      PrefillWork end{};
      end.row = -1;
      producer.publish(end);
    } else if constexpr (kFp8) {
      // Not of `warp`, which would be one register too many.
      PrefillConverter converter{smem, static_cast<int>(threadIdx.x / 32) - 1};
      if (!stale) for_each_work(p, converter);
    }
  } else {
    ptx::registers_increase<224>();
    if (warpgroup == 2) ptx::named_barrier_arrive(kBarrierTurn, kConsumers);  // the first turn
    PrefillConsumer<kFp8>{smem, p, warp - 4}.run();
    if (threadIdx.x / 128 == 1)
      ptx::named_barrier_sync(kBarrierTurn, kConsumers);  // takes back the last one
  }
}

}  // namespace l4k
