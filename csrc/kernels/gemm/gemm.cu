#include "kernels/gemm/gemm.h"

#include <array>
#include <cstdio>
#include <utility>

#include "host/device.h"
#include "host/recent.h"
#include "kernels/gemm/choose.h"

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

// Of a configuration with one CTA per SM.
GemmMachine ask_machine() {
  constexpr int kSwap = gemm_config("bf16_swap_128x128");
  static_assert(kGemmConfigs[kSwap].ctas_per_sm() == 1);
  GemmMachine machine{sm_count(), {}};
  machine.clusters[1] = machine.sms;  // the driver only answers for launches with a cluster
  for (int ctas = 2; ctas <= kMaxSplits; ++ctas)
    machine.clusters[ctas] = gemm_clusters<kSwap>(ctas);
  return machine;
}

const GemmMachine& this_machine(Machine machine) {
  static thread_local Recent<Machine, GemmMachine, 1> kept;
  return *kept.of(machine, [](GemmMachine& asked) { return asked = ask_machine(), true; });
}

struct GemmQuestion {
  GemmProblem problem;
  GemmChoice asked;
  Machine machine;

  uint64_t hash() const {
    const auto pair = [](int high, int low) {
      return uint64_t{static_cast<uint32_t>(high)} << 32 | static_cast<uint32_t>(low);
    };
    return hash_of({pair(problem.m, problem.n), pair(problem.k, problem.num_experts),
                    pair(asked.config, asked.splits),
                    uint64_t{problem.fp8} | problem.fast_accum << 1 | problem.gelu << 2 |
                        problem.block_scales << 3 | problem.fp8_out << 4 | problem.swiglu << 5});
  }
  bool operator==(const GemmQuestion&) const = default;
};

// The problem and what was chosen for it, for L4K_LOG=gemm.
void log_choice(const GemmProblem& p, GemmChoice choice) {
  const bool streams = choice.config == GemmChoice::kStream;
  std::fprintf(stderr,
               "l4kernels.gemm: m %d, n %d, k %d, experts %d, %s%s%s%s%s -> %s, splits %d\n", p.m,
               p.n, p.k, p.num_experts, p.fp8 ? "fp8" : "bf16",
               p.fast_accum ? ", fast accumulation" : "", p.block_scales ? ", block scales" : "",
               p.gelu ? ", gelu" : "", p.fp8_out ? ", swiglu to fp8" : "",
               streams ? "stream" : kGemmConfigs[choice.config].name, choice.splits);
}

}  // namespace

GemmChoice choose_gemm(const GemmParams& params) {
  static thread_local Recent<GemmQuestion, GemmChoice, 64> kept;
  const GemmProblem problem = problem_of(params);
  const Machine machine = Machine::current();
  const GemmChoice choice = *kept.of({problem, params.choice, machine}, [&](GemmChoice& chosen) {
    return chosen = choose_gemm(problem, params.choice, this_machine(machine)), true;
  });
  static const bool logs = log_asks_for("gemm");
  if (logs && choice.config != GemmChoice::kNone) log_choice(problem, choice);
  return choice;
}

cudaError_t gemm(const GemmParams& params, cudaStream_t stream) {
  constexpr auto kLaunchers = launchers(std::make_index_sequence<kNumGemmConfigs>());
  const auto [index, splits] = params.choice;
  if (index < 0) return cudaErrorInvalidValue;
  const GemmConfig& config = kGemmConfigs[index];
  GemmParams chosen = params;
  chosen.ctas_per_tile = ctas_per_tile(config, problem_of(params), splits);
  chosen.max_clusters = this_machine(Machine::current()).slots(config, chosen.ctas_per_tile);
  return kLaunchers[index](chosen, stream);
}

}  // namespace l4k
