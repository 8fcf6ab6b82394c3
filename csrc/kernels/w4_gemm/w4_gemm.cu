#include "kernels/w4_gemm/w4_gemm.h"

#include <array>
#include <cstdio>
#include <utility>

#include "host/device.h"
#include "kernels/w4_gemm/choose.h"
#include "kernels/w4_gemm/launch.cuh"

namespace l4k {

namespace {

using Launcher = cudaError_t (*)(const W4GemmParams&, cudaStream_t);

template <size_t... I>
constexpr auto launchers(std::index_sequence<I...>) {
  return std::array<Launcher, sizeof...(I)>{launch_w4_gemm<static_cast<int>(I)>...};
}

W4GemmProblem problem_of(const W4GemmParams& p) { return {p.m, p.n, p.k, p.num_experts}; }

int config_of(const W4GemmParams& p) { return choose_w4_gemm(problem_of(p), p.config, sm_count()); }

}  // namespace

int64_t w4_gemm_workspace(const W4GemmParams& p) {
  const W4GemmConfig& config = kW4GemmConfigs[config_of(p)];
  const W4GemmProblem problem = problem_of(p);
  if (!config.may_split(p.m)) return 0;
  return w4_workspace_words(config, w4_gemm_ctas(config, problem, sm_count()));
}

cudaError_t w4_gemm(const W4GemmParams& p, cudaStream_t stream) {
  constexpr auto kLaunchers = launchers(std::make_index_sequence<kNumW4GemmConfigs>());
  const int config = config_of(p);
  static const bool logs = log_asks_for("gemm");
  if (logs)
    std::fprintf(stderr, "l4kernels.w4_gemm: m %d, n %d, k %d, experts %d -> %s\n", p.m, p.n, p.k,
                 p.num_experts, kW4GemmConfigs[config].name);
  return kLaunchers[config](p, stream);
}

}  // namespace l4k
