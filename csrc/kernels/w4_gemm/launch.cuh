// Tensor map and launch of one configuration.
#pragma once
#include "host/device.h"
#include "host/launch.h"
#include "host/tensor_map.h"
#include "kernels/w4_gemm/choose.h"
#include "kernels/w4_gemm/w4_gemm.cuh"

namespace l4k {

template <int I>
cudaError_t launch_w4_gemm(const W4GemmParams& p, cudaStream_t stream) {
  constexpr W4GemmConfig C = kW4GemmConfigs[I];
  const TensorMapSpec spec{.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                           .rank = 2,
                           .base = p.a,
                           .shape = {static_cast<uint64_t>(p.k), static_cast<uint64_t>(p.m)},
                           .strides = {static_cast<uint64_t>(p.a_stride) * 2},
                           .box = {64, static_cast<uint32_t>(C.block_m)}};
  CUtensorMap a;
  if (cudaError_t error = make_tensor_map(spec, &a)) return error;
  const W4GemmProblem problem{p.m, p.n, p.k, p.num_experts};
  const auto ctas = static_cast<unsigned>(w4_gemm_ctas(C, problem, sm_count()));
  return launch(
      w4_gemm_kernel<I>,
      {.grid = dim3(ctas), .block = dim3(kW4Threads), .smem_bytes = sizeof(W4GemmSmem<I>)}, stream,
      a, p);
}

}  // namespace l4k
