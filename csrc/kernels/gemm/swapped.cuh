// Epilogue of swapped operands: weights are the 64 rows of a wgmma, tokens its columns.
//
// Every CTA of a cluster stages its sums as float32, [token][channel]; then each CTA finishes every
// `ctas`-th token with the sums of all of them:
//
//   K is split      CTA r holds the sums of its split of K: added in the order of ranks, so the
//                   result does not depend on who comes last
//   e4m3 result     CTA r holds 128 of the 256 channels whose 128 results share a scale
//
// The phases of the cluster barrier alternate: sums are staged (even), sums are read (odd).
#pragma once
#include "kernels/gemm/epilogue.cuh"
#include "kernels/gemm/smem.cuh"
#include "tile/fp8.cuh"

namespace l4k {

// Four sums of one token in the CTAs first_rank ... last_rank.
__device__ __forceinline__ float4 staged_sums(const float* staging, int first_rank, int last_rank,
                                              const GemmCluster& cluster) {
  const auto* vector = reinterpret_cast<const float4*>(staging);
  if (cluster.ctas == 1) return *vector;
  float4 sum = ptx::load_cluster(vector, first_rank);
  for (int rank = first_rank + 1; rank <= last_rank; ++rank) {
    const float4 more = ptx::load_cluster(vector, rank);
    sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
  }
  return sum;
}

__device__ __forceinline__ void add_four(float (&v)[4], const void* bf16, int64_t index) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float2 pair = load_pair(bf16, index + i);
    v[i] += pair.x;
    v[i + 1] += pair.y;
  }
}

// Scales and bias of four neighbouring channels.
__device__ __forceinline__ void scale_four(float (&v)[4], float4 sums, const GemmParams& p,
                                           float row, int expert, int channel) {
  float4 factor = {1.f, 1.f, 1.f, 1.f};
  if (const float* channels = channel_factors(p.scales, expert, p.n))
    factor = *reinterpret_cast<const float4*>(channels + channel);
  v[0] = sums.x * (row * factor.x);
  v[1] = sums.y * (row * factor.y);
  v[2] = sums.z * (row * factor.z);
  v[3] = sums.w * (row * factor.w);
  if (p.epilogue.bias != nullptr) add_four(v, p.epilogue.bias, channel);
}

__device__ __forceinline__ void store_four(const float (&v)[4], const GemmParams& p,
                                           int64_t index) {
  if (p.epilogue.out_float32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p.epilogue.d) + index) = {v[0], v[1], v[2],
                                                                             v[3]};
  } else {
    __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(v[0], v[1]),
                               __floats2bfloat162_rn(v[2], v[3])};
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(p.epilogue.d) + index) =
        reinterpret_cast<uint2&>(pairs);
  }
}

// The warp's lanes hold the 128 results of a scale, four each.
__device__ __forceinline__ void store_four_fp8(const float (&v)[4], const GemmParams& p, int row,
                                               int column) {
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) amax = max(amax, __float_as_uint(v[i]) & 0x7fffffff);
  const Fp8Scale scale = fp8_scale(__uint_as_float(warp_max(amax)));
  const int64_t columns = p.n / 2;
  *reinterpret_cast<uint32_t*>(static_cast<char*>(p.epilogue.d) + row * columns + column) =
      fp8_pair(v[0], v[1], scale.inverse) | fp8_pair(v[2], v[3], scale.inverse) << 16;
  if (column % kScaleBlock == 0) p.d_scale[(row * columns + column) / kScaleBlock] = scale.scale;
}

// Whole tile of one CTA, by both consumer warpgroups. Of an e4m3 result `tile` is this CTA's half.
template <int I, int kRegisters>
__device__ __forceinline__ void finish_swapped(const float (&acc)[kRegisters], const GemmParams& p,
                                               GemmSmem<I>& smem, RaggedTile tile, int consumer) {
  constexpr GemmConfig C = kGemmConfigs[I];
  auto* staging = reinterpret_cast<float*>(smem.staging);
  const bool swiglu = p.epilogue.activation == Activation::kSwiglu, fp8 = p.d_scale != nullptr;
  const int thread = threadIdx.x - 128, lane = thread % 32, warp = thread / 32 % 4;
  // Eight gate channels and the eight up channels of the same results are registers h = 0 and 1 of
  // one thread: gates go to the first half of a row, ups to the second, so that four neighbouring
  // results read four neighbouring floats of each.
  const int position =
      swiglu ? 32 * consumer + 8 * warp + lane / 4 : 64 * consumer + 16 * warp + lane / 4;
  smem.cluster_barrier.wait(1);  // the last tile's sums have been read
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int token = r / 4 * 8 + lane % 4 * 2 + r % 2;
    staging[token * C.pitch() + position + (swiglu ? 64 : 8) * (r / 2 % 2)] = acc[r];
  }
  const GemmCluster cluster = smem.cluster;
  if (fp8) tile.column -= cluster.rank * C.block_n;  // the cluster's first channel
  smem.cluster_barrier.arrive(kBarrierConsumers, kGemmConsumers, thread, cluster.ctas);
  smem.cluster_barrier.wait(0);

  const int log_vectors = swiglu && !fp8 ? 4 : 5;  // vectors of four results, per token
  const int columns = swiglu ? p.n / 2 : p.n;
  for (int item = thread;; item += kGemmConsumers) {
    const int token = cluster.rank + (item >> log_vectors) * cluster.ctas, row = tile.row + token;
    if (token >= C.block_m || row >= tile.row_end) break;
    const int v = item & ((1 << log_vectors) - 1);
    const int first_rank = fp8 ? v / 16 : 0, last_rank = fp8 ? v / 16 : cluster.ctas - 1;
    const float* sums = staging + token * C.pitch() + 4 * (fp8 ? v % 16 : v);
    // The first channel: swiglu interleaves eight gates and eight ups.
    const int channel = tile.column + (swiglu ? v / 2 * 16 + v % 2 * 4 : 4 * v);
    if (channel >= p.n) continue;
    const float factor = row_factor(p.epilogue, p.scales, row, tile.expert);
    float result[4];
    scale_four(result, staged_sums(sums, first_rank, last_rank, cluster), p, factor, tile.expert,
               channel);
    int column = channel;
    if (swiglu) {
      float up[4];
      scale_four(up, staged_sums(sums + 64, first_rank, last_rank, cluster), p, factor, tile.expert,
                 channel + 8);
#pragma unroll
      for (int i = 0; i < 4; ++i) result[i] = silu(result[i]) * up[i];
      column = tile.column / 2 + 4 * v;
    } else if (p.epilogue.activation == Activation::kGelu) {
      gelu(result);
    }
    if (fp8) {
      store_four_fp8(result, p, row, column);
      continue;
    }
    if (p.epilogue.residual != nullptr)
      add_four(result, p.epilogue.residual, row * p.epilogue.residual_stride + column);
    store_four(result, p, int64_t{row} * columns + column);
  }
  smem.cluster_barrier.template arrive<false>(kBarrierConsumers, kGemmConsumers, thread,
                                              cluster.ctas);
}

}  // namespace l4k
