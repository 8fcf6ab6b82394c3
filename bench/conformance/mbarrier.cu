// mbarrier: arrivals, counts that drop, bytes announced and completed, through several phases. After
// every step: whether either parity has completed, and the phase in which the step arrived.
#include "conformance.h"
#include "ptx/mbarrier.cuh"

namespace {

enum Step : uint32_t { kArrive, kArriveExpect, kDrop, kExpect, kComplete };
constexpr int kSteps = 12;

struct Program {
  uint32_t count, steps[kSteps];  // a step and, from bit 8, its operand
};

__device__ uint32_t completed(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, "
      "p; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done;
}

__device__ uint32_t phase_completed(uint32_t barrier, uint64_t state) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(barrier), "l"(state)
      : "memory");
  return done;
}

__device__ uint64_t perform(uint32_t barrier, uint32_t step, uint32_t operand) {
  uint64_t state = 0;
  switch (step) {
    case kArrive:
      asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], %2;"
                   : "=l"(state)
                   : "r"(barrier), "r"(operand)
                   : "memory");
      break;
    case kArriveExpect:
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 %0, [%1], %2;"
                   : "=l"(state)
                   : "r"(barrier), "r"(operand)
                   : "memory");
      break;
    case kDrop:
      asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1], %2;"
                   : "=l"(state)
                   : "r"(barrier), "r"(operand)
                   : "memory");
      break;
    case kExpect:
      asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier),
                   "r"(operand)
                   : "memory");
      break;
    default:
      asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier),
                   "r"(operand)
                   : "memory");
  }
  return state;
}

__global__ void family(const Program* programs, int count, uint32_t* out) {
  __shared__ uint64_t barriers[32];
  const int i = blockIdx.x * 32 + threadIdx.x;
  if (i >= count) return;
  const uint32_t barrier = l4k::ptx::smem_address(&barriers[threadIdx.x]);
  l4k::ptx::mbarrier_init(&barriers[threadIdx.x], programs[i].count);
  for (int k = 0; k < kSteps; ++k) {
    const uint32_t step = programs[i].steps[k] & 255;
    const uint64_t state = perform(barrier, step, programs[i].steps[k] >> 8);
    uint32_t own = 0;
    if (step <= kDrop) own = phase_completed(barrier, state);
    out[i * kSteps + k] = completed(barrier, 0) | completed(barrier, 1) << 1 | own << 2;
  }
}

// Random steps that are legal: nothing arrives more often, or completes more, than is expected.
Program program_of(conformance::Random& draw) {
  Program made{1 + draw.below(6), {}};
  uint32_t expected = made.count, pending = expected, bytes = 0;
  for (uint32_t& step : made.steps) {
    const uint32_t arrivals = pending ? 1 + draw.below(pending) : 0,
                   announced = 1 + draw.below(4000);
    const uint32_t completed = bytes ? 1 + draw.below(bytes) : 0;
    switch (draw.below(5)) {
      case kExpect:
        step = kExpect | announced << 8, bytes += announced;
        break;
      case kArriveExpect:
        if (pending) {
          step = kArriveExpect | announced << 8, bytes += announced, pending -= 1;
          break;
        }
        [[fallthrough]];
      case kComplete:
        if (bytes) {
          const uint32_t part = draw.below(2) ? bytes : completed;
          step = kComplete | part << 8, bytes -= part;
          break;
        }
        [[fallthrough]];
      case kDrop:
        if (pending && expected > 1) {
          step = kDrop | 1 << 8, pending -= 1, expected -= 1;
          break;
        }
        [[fallthrough]];
      default:
        if (pending) step = kArrive | arrivals << 8, pending -= arrivals;
        else step = kComplete | bytes << 8, bytes = 0;
    }
    if (pending == 0 && bytes == 0) pending = expected;
  }
  return made;
}

}  // namespace

int main() {
  conformance::Random draw{14};
  std::vector<Program> programs;
  for (int i = 0; i < 256; ++i) programs.push_back(program_of(draw));
  const int count = static_cast<int>(programs.size());
  const conformance::Buffer<Program> in(programs);
  const conformance::Buffer<uint32_t> out(programs.size() * kSteps);
  family<<<count / 32, 32, 0, micro::stream()>>>(in.data, count, out.data);
  std::vector<uint32_t> inputs(programs.size() * (kSteps + 1));
  std::memcpy(inputs.data(), programs.data(), inputs.size() * 4);
  conformance::write({{"mbarrier"}, count, kSteps + 1, kSteps}, inputs, out.host());
}
