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
  const GemmProblem problem = problem_of(params);
  const GemmChoice choice = choose_gemm(problem, params.asked, sm_count());
  if (choice.config < 0) return cudaErrorInvalidValue;
  GemmParams chosen = params;
  chosen.ctas_per_tile = ctas_per_tile(kGemmConfigs[choice.config], problem, choice.splits);
  return kLaunchers[choice.config](chosen, stream);
}

}  // namespace l4k
