// Tensor maps and launch of one configuration; each .cu compiles a few of them, side by side.
#pragma once
#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "host/tensor_map.h"
#include "kernels/gemm/gemm.cuh"

namespace l4k {

template <int I>
LaunchConfig gemm_launch(int ctas) {
  return {.block = dim3(kGemmThreads), .smem_bytes = sizeof(GemmSmem<I>), .cluster = ctas};
}

template <int I>
cudaError_t launch_gemm(const GemmParams& p, cudaStream_t stream) {
  constexpr GemmConfig C = kGemmConfigs[I];
  const uint64_t element = C.fp8 ? 1 : 2;
  const auto type = C.fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const auto k = static_cast<uint64_t>(p.k), n = static_cast<uint64_t>(p.n);
  const uint64_t columns = p.epilogue.activation == Activation::kSwiglu ? n / 2 : n;
  const auto m = static_cast<uint64_t>(p.m), experts = static_cast<uint64_t>(p.num_experts);
  const uint32_t block_k = C.block_k();
  // CTAs that share a box load a slice each.
  const uint32_t slice_m = C.block_m / C.cluster_n, slice_n = C.block_n / C.cluster_m;
  const TensorMapSpec spec_a{.type = type,
                             .rank = 2,
                             .base = p.a,
                             .shape = {k, m},
                             .strides = {p.a_stride * element},
                             .box = {block_k, slice_m}};
  const TensorMapSpec spec_b{.type = type,
                             .rank = 3,
                             .base = p.b,
                             .shape = {k, n, experts},
                             .strides = {k * element, n * k * element},
                             .box = {block_k, slice_n, 1}};
  const uint32_t box = C.result_box();
  TensorMapSpec spec_d{.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                       .rank = 2,
                       .base = p.epilogue.d,
                       .shape = {columns, m},
                       .strides = {columns * 2},
                       .box = {box, 64},
                       .swizzle = box == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                  : box == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                              : CU_TENSOR_MAP_SWIZZLE_32B};
  CUtensorMap a, b, d{}, residual{};
  cudaError_t error = make_tensor_map(spec_a, &a);
  if (error == cudaSuccess) error = make_tensor_map(spec_b, &b);
  // Only whole bf16 tiles leave by TMA.
  if (error == cudaSuccess && !C.swap && !p.epilogue.out_float32 && p.d_scale == nullptr)
    error = make_tensor_map(spec_d, &d);
  // The residual looks like them; rows that overlap make no map.
  const auto residual_stride = static_cast<uint64_t>(p.epilogue.residual_stride);
  GemmParams q = p;
  q.residual_boxes = !C.swap && p.epilogue.residual != nullptr && residual_stride >= columns;
  if (error == cudaSuccess && q.residual_boxes) {
    spec_d.base = p.epilogue.residual;
    spec_d.strides[0] = residual_stride * 2;
    error = make_tensor_map(spec_d, &residual);
  }
  if (error != cudaSuccess) return error;
  const int ctas = p.ctas_per_tile;
  const int tile_n = C.block_n * (C.swap && p.d_scale != nullptr ? 2 : C.cluster_n);
  const int tile_m = C.split_k && p.choice.splits > 1 ? C.block_m : C.block_m * C.cluster_m;
  const int64_t tiles = int64_t{max_row_tiles(p.m, p.num_experts, tile_m)} * ceil_div(p.n, tile_n);
  const int64_t clusters = std::min<int64_t>(tiles, p.max_clusters);
  LaunchConfig config = gemm_launch<I>(ctas);
  config.grid = dim3(static_cast<unsigned>(clusters * ctas));
  return launch(gemm_kernel<I>, config, stream, a, b, d, residual, q);
}

template <int I>
int gemm_clusters(int ctas) {
  return resident_clusters(gemm_kernel<I>, gemm_launch<I>(ctas));
}

#define L4K_GEMM_CONFIG(NAME)                                                           \
  template cudaError_t launch_gemm<gemm_config(NAME)>(const GemmParams&, cudaStream_t); \
  template int gemm_clusters<gemm_config(NAME)>(int ctas)

}  // namespace l4k
