// s = x + residual,  y = round(s * rsqrt(mean(s^2) + eps)) * weight,  q = e4m3(y / scale)
//
// One CTA holds one row in registers, two vectors of 16 bytes per thread, so everything is read
// once and written once. The launch has as many CTAs as fit the GPU; each walks over rows and
// loads its next row before it reduces the current one. The weights are loaded once per CTA and stay
// in registers. One configuration per width: the same row gives the same bits at any place of any
// batch. See docs/kernels/rms_norm.md.
#pragma once
#include "kernels/rms_norm/rms_norm.h"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/fp8.cuh"
#include "tile/norm.cuh"

namespace l4k {

struct RmsNormRow {
  uint4 x[kNormVectors], residual[kNormVectors];
};

template <bool kResidual>
__device__ __forceinline__ void load_row(const RmsNormParams& params, int64_t row,
                                         RmsNormRow& out) {
  const uint4* x = static_cast<const uint4*>(params.x) + row * (params.x_stride / kVector);
  const uint4* residual =
      static_cast<const uint4*>(params.residual) + row * (params.residual_stride / kVector);
#pragma unroll
  for (int u = 0; u < kNormVectors; ++u) {
    const int v = threadIdx.x + u * blockDim.x;
    out.x[u] = out.residual[u] = uint4{};  // zeros change neither sum nor maximum
    if (row < params.rows && v < params.width / kVector) {
      out.x[u] = ptx::load_streaming(x + v);
      if constexpr (kResidual) out.residual[u] = ptx::load_streaming(residual + v);
    }
  }
}

template <bool kResidual, int kScaling>
__global__ void __maxnreg__(kRmsNormRegisters) rms_norm_kernel(RmsNormParams params) {
  extern __shared__ uint4 weights[];  // [vectors]: a thread reads what it wrote
  __shared__ float sums[2][32];
  __shared__ uint32_t maxima[2][32];
  const int vectors = params.width / kVector;

  ptx::grid_launch_dependents();
  prefetch_norm_weight(params.weight, vectors);
  ptx::grid_dependency_wait();
  RmsNormRow ahead;
  load_row<kResidual>(params, blockIdx.x, ahead);
  for (int v = threadIdx.x; v < vectors; v += blockDim.x)
    weights[v] = ptx::load_streaming(static_cast<const uint4*>(params.weight) + v);
  int parity = 0;
  for (int64_t row = blockIdx.x; row < params.rows; row += gridDim.x, parity ^= 1) {
    uint4 s[kNormVectors];
    float sum = 0.f;
#pragma unroll
    for (int u = 0; u < kNormVectors; ++u) {
      s[u] = kResidual ? add(ahead.x[u], ahead.residual[u]) : ahead.x[u];
      add_squares(s[u], sum);
    }
    load_row<kResidual>(params, row + gridDim.x, ahead);
    const float factor = inverse_rms(sum, params.width, params.eps, sums[parity]);

    uint4 y[kNormVectors];
    uint2* q = static_cast<uint2*>(params.q) + row * vectors;
#pragma unroll
    for (int u = 0; u < kNormVectors; ++u) {
      const int v = threadIdx.x + u * blockDim.x;
      y[u] = uint4{};
      if (v < vectors) {
        y[u] = normalise(s[u], factor, weights[v]);
        if constexpr (kResidual)
          ptx::store_streaming(static_cast<uint4*>(params.residual_out) + row * vectors + v, s[u]);
        if (kScaling == kScalingNone || params.y != nullptr)
          ptx::store_streaming(static_cast<uint4*>(params.y) + row * vectors + v, y[u]);
      }
      if constexpr (kScaling == kScaling1x128)
        store_fp8_vector(y[u], v, vectors, q, params.scale + row * (params.width / kScaleBlock));
    }
    if constexpr (kScaling == kScalingRow)
      store_fp8_row<kScalingRow>(y, vectors, q, params.scale + row, maxima[parity]);
  }
}

}  // namespace l4k
