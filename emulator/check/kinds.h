// The kinds of report: their names, how bad each is, what it means. docs/emulator.md has this table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace l4k::emu {

// error: wrong on hardware. rule: breaks the documented rules, and works on today's hardware.
// benign: the value is not used, or is the same either way.
enum class Severity : uint8_t { benign, rule, error };
inline constexpr const char* kSeverityNames[] = {"benign", "rule", "error"};
constexpr const char* name_of(Severity s) { return kSeverityNames[static_cast<size_t>(s)]; }

struct FaultKind {
  const char* name;
  Severity severity;
  const char* meaning;
  bool final = false;  // no launch can go on after it, whatever the settings say
};

inline constexpr FaultKind kFaultKinds[] = {
    {"global-out-of-bounds", Severity::error,
     "outside every live allocation, or past a registered tensor's end"},
    {"use-after-free", Severity::error,
     "memory that was freed before this kernel was launched, or is freed with no order to its use"},
    {"use-before-allocation", Severity::error,
     "memory of a stream's `cudaMallocAsync`, touched on a stream that does not wait for it"},
    {"stream-race", Severity::error,
     "two kernels or copies of streams or of a graph's branches touch the same bytes in no order"},
    {"global-read-only", Severity::error, "a store to a kernel parameter or constant"},
    {"shared-out-of-bounds", Severity::error, "outside the CTA's shared memory"},
    {"local-out-of-bounds", Severity::error, "outside the thread's local memory"},
    {"misaligned", Severity::error, "address, size or tensor-map placement"},
    {"bad-operand", Severity::error, "an operand outside its range"},
    {"tensor-map", Severity::error, "not a tensor map, or the wrong number of coordinates"},
    {"uninitialised-shared-read", Severity::error,
     "something depends on shared memory that nobody wrote"},
    {"uninitialised-register", Severity::error,
     "a register nobody wrote decides a branch, an address or a stored value"},
    {"uninitialised-unused", Severity::benign,
     "shared memory that nobody wrote is read, and no result depends on it"},
    {"shared-race", Severity::error,
     "two warps, a warp and a copy, or lanes without `__syncwarp`, with no order between them"},
    {"volatile-race", Severity::rule,
     "volatile accesses to one place by lanes of a warp, with no `__syncwarp` between"},
    {"same-value-race", Severity::benign, "a race of stores that all store the same value"},
    {"shared-in-flight", Severity::error,
     "shared memory that a copy in flight writes, or that wgmma or a bulk store still reads"},
    {"store-at-exit", Severity::rule,
     "a thread ends while its bulk store may still read shared memory"},
    {"copy-at-exit", Severity::rule,
     "a CTA ends while its bulk copy is in flight, or nobody has waited for it"},
    {"register-in-flight", Severity::error,
     "an accumulator used, or an A register written, before `wgmma.wait_group`"},
    {"wgmma-fence-missing", Severity::error,
     "registers written, or results read, since the last `wgmma.fence`; or none at all"},
    {"proxy-fence-missing", Severity::error,
     "ordinary stores read by wgmma or TMA without `fence.proxy.async`"},
    {"warpgroup-divergence", Severity::error,
     "the four warps of a warpgroup disagree about a wgmma or `setmaxnreg`"},
    {"missing-lane", Severity::error,
     "lanes or warps that a `.sync` or `.aligned` instruction needs do not come, or pass another "
     "member mask"},
    {"divergent-barrier", Severity::error, "`bar.sync` by part of a warp"},
    {"barrier-mismatch", Severity::error, "a barrier's counts differ, or are impossible"},
    {"cluster-barrier", Severity::error, "arrive and wait out of turn"},
    {"cluster-not-started", Severity::error, "access to a CTA that may not have started"},
    {"cluster-exited", Severity::error, "access to a CTA that has ended, or may have"},
    {"arrival-at-exit", Severity::rule,
     "a CTA ends with no barrier between that and another CTA's arrival on its mbarrier"},
    {"mbarrier-uninitialised", Severity::error, "no mbarrier was initialised there"},
    {"mbarrier-init-fence-missing", Severity::rule,
     "a bulk copy completes on an mbarrier that no `fence.mbarrier_init` has shown to it"},
    {"mbarrier-initialised-again", Severity::rule,
     "a live mbarrier initialised to what it is, before its first use"},
    {"mbarrier-overwritten", Severity::error, "a live mbarrier stored over or initialised again"},
    {"mbarrier-over-arrival", Severity::error, "more arrivals than the phase expects"},
    {"mbarrier-tx-overflow", Severity::error, "more bytes than the phase expects"},
    {"mbarrier-count", Severity::error, "a count outside its range"},
    {"mbarrier-parity", Severity::error, "a parity that is neither 0 nor 1"},
    {"global-race", Severity::error,
     "global memory that two warps of a CTA, or stores of two CTAs, use with no order between "
     "them"},
    {"stale-global-read", Severity::error,
     "global memory read and written by two CTAs with no release and acquire between"},
    {"acquire-fence-missing", Severity::rule,
     "read of what a CTA released, with no fence after the relaxed access that saw the release"},
    {"nc-read-of-written", Severity::error, "`ld.global.nc` of memory that the same kernel writes"},
    {"dependency-race", Severity::error,
     "what a kernel that may still run touches, before `griddepcontrol.wait`"},
    {"dependency-wait-late", Severity::rule,
     "what a kernel wrote that ended without `griddepcontrol.launch_dependents`, touched by the "
     "next before its `griddepcontrol.wait`"},
    {"dependency-wait-missing", Severity::rule,
     "a CTA of a dependent launch that ends without one"},
    {"setmaxnreg-pool", Severity::error, "more registers than the CTA's pool holds"},
    {"bad-branch-index", Severity::error, "`brx.idx` past its table"},
    {"bad-call", Severity::error,
     "too few arguments, or a pointer that holds no function of these parameters", true},
    {"stack-overflow", Severity::error, "calls nested more than 200 deep", true},
    {"assertion", Severity::error, "a failed `assert`", true},
    {"trap", Severity::error, "the kernel executed `trap`, or ran past its end", true},
    {"deadlock", Severity::error, "nothing can run and nothing is in flight", true},
    {"instruction-limit", Severity::error, "the setting `limit` was reached", true},
    {"not-implemented", Severity::error,
     "an instruction or modifier that the emulator does not know; nothing is skipped", true},
};
inline constexpr size_t kFaultKindCount = sizeof kFaultKinds / sizeof *kFaultKinds;

// Its row, or kFaultKindCount for a name that is in none.
constexpr size_t fault_kind_index(std::string_view name) {
  size_t i = 0;
  while (i < kFaultKindCount && name != kFaultKinds[i].name) ++i;
  return i;
}
inline const FaultKind* find_fault_kind(std::string_view name) {
  size_t i = fault_kind_index(name);
  return i < kFaultKindCount ? &kFaultKinds[i] : nullptr;
}

// A kind by its name, looked up when the emulator is compiled. (An index: with UBSan, GCC does not take
// pointers into the table for constants.)
class KindName {
 public:
  consteval KindName(const char* name) : index_(fault_kind_index(name)) {
    if (index_ == kFaultKindCount) throw "no such kind: add it to kFaultKinds";
  }
  const FaultKind& operator*() const { return kFaultKinds[index_]; }
  const FaultKind* operator->() const { return &kFaultKinds[index_]; }

 private:
  size_t index_;
};

}  // namespace l4k::emu
