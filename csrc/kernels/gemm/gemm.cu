#include "kernels/gemm/gemm.h"

#include <array>
#include <utility>

#include "host/device.h"
#include "kernels/gemm/configs.h"

namespace l4k {

template <int I>
cudaError_t launch_gemm(const GemmParams& params, cudaStream_t stream);

namespace {

using Launcher = cudaError_t (*)(const GemmParams&, cudaStream_t);

template <size_t... I>
constexpr auto launchers(std::index_sequence<I...>) {
  return std::array<Launcher, sizeof...(I)>{launch_gemm<static_cast<int>(I)>...};
}

}  // namespace

cudaError_t gemm(const GemmParams& params, cudaStream_t stream) {
  constexpr auto kLaunchers = launchers(std::make_index_sequence<kNumGemmConfigs>());
  const int config = params.config >= 0
                         ? params.config
                         : choose_gemm_config(params.m, params.n, params.num_experts, params.fp8,
                                              params.fast_accum,
                                              params.activation == GemmActivation::kGelu,
                                              sm_count());
  return kLaunchers[config](params, stream);
}

}  // namespace l4k
