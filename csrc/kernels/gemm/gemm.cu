#include "kernels/gemm/gemm.h"

#include <array>
#include <mutex>
#include <utility>

#include "host/device.h"
#include "kernels/gemm/configs.h"

namespace l4k {

template <int I>
cudaError_t launch_gemm(const GemmParams& params, cudaStream_t stream);
template <int I>
int gemm_clusters(int ctas);

namespace {

using Launcher = cudaError_t (*)(const GemmParams&, cudaStream_t);

template <size_t... I>
constexpr auto launchers(std::index_sequence<I...>) {
  return std::array<Launcher, sizeof...(I)>{launch_gemm<static_cast<int>(I)>...};
}

// Asked once per device; of a row with one CTA per SM.
GemmMachine ask_machine() {
  constexpr int kRow = 10;
  static_assert(kGemmConfigs[kRow].ctas_per_sm() == 1 && kGemmConfigs[kRow].swap);
  GemmMachine machine{sm_count(), {}};
  machine.clusters[1] = machine.sms;  // the driver only answers for launches with a cluster
  for (int ctas = 2; ctas <= kMaxSplits; ++ctas) machine.clusters[ctas] = gemm_clusters<kRow>(ctas);
  return machine;
}

const GemmMachine& this_machine() {
#ifdef L4K_EMULATED  // the emulated machine may have changed
  static GemmMachine machine;
  machine = ask_machine();
  return machine;
#else
  static std::array<std::once_flag, kMaxDevices> asked;
  static std::array<GemmMachine, kMaxDevices> machines;
  const int device = current_device();
  std::call_once(asked[device], [&] { machines[device] = ask_machine(); });
  return machines[device];
#endif
}

}  // namespace

cudaError_t gemm(const GemmParams& params, cudaStream_t stream) {
  constexpr auto kLaunchers = launchers(std::make_index_sequence<kNumGemmConfigs>());
  const GemmProblem problem = problem_of(params);
  const GemmMachine& machine = this_machine();
  const GemmChoice choice = choose_gemm(problem, params.asked, machine);
  if (choice.config < 0) return cudaErrorInvalidValue;
  const GemmConfig& config = kGemmConfigs[choice.config];
  GemmParams chosen = params;
  chosen.ctas_per_tile = ctas_per_tile(config, problem, choice.splits);
  chosen.max_clusters = machine.slots(config, chosen.ctas_per_tile);
  return kLaunchers[choice.config](chosen, stream);
}

}  // namespace l4k
