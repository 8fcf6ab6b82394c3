// The machine: launches, clusters, CTAs, warps and what they share.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "check/global_memory.h"
#include "check/report.h"
#include "check/sectors.h"
#include "check/shared_memory.h"
#include "check/stream_order.h"
#include "machine/core/in_flight.h"
#include "machine/core/program.h"
#include "tensor/mma.h"

namespace l4k::emu {

struct Cta;
struct Cluster;
struct Launch;
class Machine;

// Generic addresses from here on are not host pointers.
inline constexpr uint64_t kSharedWindow = uint64_t{1} << 48;
inline constexpr uint64_t kLocalWindow = uint64_t{1} << 49;
inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr uint32_t kStarted = 1;  // a warp's clock before its first access

enum class Mode : uint8_t { late, early, random };

uint32_t default_threads();  // the host's processors, 8 at most

struct Settings {
  Mode mode = Mode::late;
  uint64_t seed = 1;
  uint32_t sms = 4;
  uint32_t threads = default_threads();  // of the host; the outcome does not depend on them
  bool strict = false;
  Fp8Accumulation fp8 = Fp8Accumulation::hopper;
  ReportPolicy reports;
  bool print = false;   // reports go to stderr as well
  bool leaks = false;   // what is still allocated at exit goes to stderr
  std::string results;  // file for how many reports there were, and the counters, at exit
  bool perturb = true;  // move approximations inside their documented error
  uint64_t max_instructions = uint64_t{1} << 40;
};

// State of a register: lanes that must not be used, and what is in flight.
enum class Busy : uint8_t { none, accumulator, fragment, alias };
struct RegState {
  uint32_t bad = kAllLanes;
  uint32_t tag = 0;  // Busy in the top two bits; below, the warp's fence count at the last write
  static constexpr uint32_t kBusyShift = 30, kResult = 1u << 29, kMaxFence = kResult - 1;
  Busy busy() const { return static_cast<Busy>(tag >> kBusyShift); }
  uint32_t fence() const { return tag & kMaxFence; }
  bool result() const { return tag & kResult; }  // of a wgmma, and not touched since
  // Accumulators and their copies are unusable until the wgmma has been waited for.
  bool in_flight() const { return busy() == Busy::accumulator || busy() == Busy::alias; }
  static constexpr uint32_t busy_tag(Busy b) { return static_cast<uint32_t>(b) << kBusyShift; }
  void set_busy(Busy b) { tag = (tag & (busy_tag(Busy::accumulator) - 1)) | busy_tag(b); }
  void set_fence(uint32_t count) { tag = (tag & ~(kResult | kMaxFence)) | count; }
};

struct Frame {
  const Program* program = nullptr;
  InstCounters* counters = nullptr;  // of the program, by instruction
  std::vector<uint8_t> registers;
  std::vector<RegState> states;
  std::vector<uint8_t> params;                   // 32 lanes, each ptx->param_bytes
  UndefinedBytes undefined_params;               // keys: lane_byte
  std::unordered_map<uint32_t, Origin> origins;  // of undefined registers, by index
  uint64_t local_base = 0;
  const Inst* call = nullptr;  // the instruction that called
  uint32_t lane_pc[32] = {};   // the caller's lanes
  uint32_t live = 0;
};

// Of stores by other CTAs. observed: the warp's last atomic or volatile access; acquired: the last
// time that an acquire or a fence made visible what had been observed. Barriers pass both on.
struct Visibility {
  uint64_t observed = 0, acquired = 0;
  void join(const Visibility& other) {
    observed = std::max(observed, other.observed);
    acquired = std::max(acquired, other.acquired);
  }
};

struct Mbarrier {
  uint32_t count = 0, pending = 0;
  int64_t tx = 0;
  uint64_t phase = 0;
  std::vector<uint32_t> init_epochs;  // several where it was initialised again, in no order
  int64_t fenced_phase = -1;          // of the cluster barrier, at fence.mbarrier_init
  Visibility next_visibility, done_visibility;
  Clock next_seen, next_proxied, done_seen, done_proxied;
};

// bar.red: a reduction of predicates over the threads at a barrier, and where it goes.
enum class BarrierReduction : uint8_t { none, popc, all, any };
struct BarrierWaiter {
  Warp* warp;
  BarrierReduction reduction;
  Reg result;
};
struct NamedBarrier {
  uint32_t arrived = 0, expected = 0;  // threads; expected 0: every thread of the CTA
  std::vector<BarrierWaiter> waiting;
  Visibility visibility;
  uint32_t red_count = 0, red_total = 0;  // bar.red: predicates that are true, of how many
  Clock seen, proxied;
};

enum class Wait : uint8_t {
  none,
  barrier,
  cluster_barrier,
  mbarrier,
  poll,
  registers,
  grid,
  warpgroup
};

// A byte of a memory that every lane has its own of.
inline uint64_t lane_byte(int lane, uint64_t at) { return static_cast<uint64_t>(lane) << 48 | at; }

// An instruction that has read undefined shared memory, the first time.
struct UndefinedRead {
  Origin from;
  uint32_t warp;
  int lane;
  bool used;  // and reported
};

struct Warp {
  Machine* m = nullptr;
  Cta* cta = nullptr;
  uint32_t index = 0;
  // Execution.
  const Program* program = nullptr;
  InstCounters* tally = nullptr;  // of the program, by instruction
  uint32_t pc = 0, mask = 0, active = 0, live = 0, join = ~0u, next = 0, dead = 0;
  uint32_t stalled = 0, gathering = 0;  // lanes that wait for something; for the rest of the warp
  uint32_t lane_pc[32] = {};
  uint32_t lacking[32] = {};              // of a lane that gathers: whom it waits for
  uint8_t* base[2] = {nullptr, nullptr};  // registers, constant pool
  RegState* state = nullptr;
  std::vector<std::unique_ptr<Frame>> frames;
  uint64_t bias[4] = {0, 0, 0, 0};
  uint32_t carry = 0;
  bool exited = false, regrouped = false;
  Wait wait = Wait::none;
  bool timed_out = false, notified = false;
  uint64_t wait_progress = 0;
  Cta* wait_cta = nullptr;  // the mbarrier it waits for
  uint32_t wait_address = 0, wait_parity = 0, wait_barrier = 0;
  uint32_t poll_pc = ~0u, poll_count = 0;
  uint64_t poll_key = 0, poll_progress = 0;
  // Order and visibility.
  Actor actor;
  StoreBuffer stores;
  // Local memory: per lane, grown on demand.
  std::vector<uint8_t> local;
  uint64_t local_bytes = 0, local_top = 0;
  // Undefined data. `undefined`: lanes with an undefined source, while their instruction runs, and
  // then lanes whose result is. `undefined_results`: what a load has brought in.
  UndefinedBytes undefined_local;  // keys: lane_byte
  uint32_t undefined = 0;
  struct UndefinedResult {
    Reg to;
    uint32_t lanes;
    Origin from;
  };
  std::vector<UndefinedResult> undefined_results;
  // Asynchronous work.
  uint32_t fence_count = 1, registers = 0;
  bool wgmma_fenced = false;
  uint64_t wgmma_seq = 0;
  uint32_t wgmma_group = 0;
  std::deque<std::unique_ptr<PendingWgmma>> wgmmas;
  std::deque<CpAsync> copies;
  uint32_t copy_group = 0, copy_seq = 0;
  std::vector<DeferredArrive> deferred_arrives;
  uint32_t bulk_group[32] = {};
  uint32_t cluster_phase = 0;
  bool cluster_arrived = false, dependency_waited = false;
  int64_t cluster_passed = -1;  // last phase of the cluster barrier it has been through
  Visibility visibility;        // of the rest of the grid
  uint64_t proxied = 0;         // its last proxy fence that covers global memory

  template <typename T>
  T* reg(const Reg& r) {
    return reinterpret_cast<T*>(base[r.index == 0] + r.offset);
  }
  // Predicates are lane masks.
  void set_predicate(const Reg& r, uint32_t lanes) {
    uint32_t& p = *reg<uint32_t>(r);
    p = (p & ~active) | (lanes & active);
  }
  void broadcast(const Reg& r, uint32_t v) {
    for (uint32_t l = active; l; l &= l - 1) reg<uint32_t>(r)[std::countr_zero(l)] = v;
  }
  const Inst& current() const { return program->code[pc]; }
  InstCounters& counters() { return tally[pc]; }
  void run(uint32_t budget);
  void execute(const Inst& in, uint32_t lanes);  // and checks the registers' states
  // After a fault: the results of the lanes at fault are undefined. The lanes that are still to be
  // performed; 0: none, and the warp is behind the instruction.
  uint32_t leave_out(const Fault& f);
  void perform_rest(uint32_t lanes);
  void set_results(const Inst& in, uint32_t lanes, uint32_t undefined);
  void step_over();
  void regroup();
  // The current lanes cannot go on: repeats the instruction later. Returns with the warp parked, or
  // with other lanes of it selected.
  void park(Wait why);
  void wake();
  // True when the lanes in `required` are all here; else lets the missing lanes run first, and
  // reports missing-lane when they cannot come.
  bool gather(uint32_t required, const char* what);
  // The same for sets of lanes: those that pass the same member mask need each other only. False
  // when a set is incomplete; the complete ones then repeat the instruction by themselves.
  bool gather_sets(const uint32_t* masks, const char* what);
  void use(const Reg& s, uint32_t lanes) {  // reports an undefined or in-flight register
    if (state[s.index].bad & lanes) bad_source(s, lanes, false);
  }
  void written(const Reg& d, uint32_t lanes, uint32_t bad = 0) {
    RegState& r = state[d.index];
    if (r.busy() != Busy::none) busy_write(d);
    r.bad = (r.bad & ~lanes) | bad;
    r.tag = fence_count;
  }
  uint32_t bad_source(const Reg& s, uint32_t lanes, bool propagates);
  void execute_undefined(const Inst& in, uint32_t lanes);
  uint32_t depends(const Inst& in, uint32_t bad);
  // Where an undefined register's value came from; nowhere if it was never written.
  Origin origin(const Reg& r) const;
  void set_origin(const Reg& r, const Origin& from);
  // The current instruction reads `bytes` of undefined shared memory.
  Origin read_undefined(const SharedMemory& shared, uint32_t address, uint32_t bytes, int lane);
  // ... and its result in a vector operand is undefined where `mask`, a bit a byte, says so.
  void load_undefined(const Inst& in, uint32_t element, int lane, uint32_t mask,
                      const Origin& from);
  void settle_loads();
  void use_undefined(const Origin& from, const std::string& what, int lane);  // reports it
  void busy_write(const Reg& d);
  void touch_results(const Inst& in);
  void defer_move(const Reg& to, const Reg& from, uint32_t bytes);  // from: in flight
  void compute_one();  // random mode: the oldest committed wgmma that has not been computed
  void check_warpgroup_exit();  // reports a wgmma that it leaves to the rest of its warpgroup
  const std::string& register_name(const Reg& r) const {
    return program->ptx->registers[r.index].name;
  }
  void check_missing(uint32_t set, uint32_t missing, const char* what);
  void hold(uint32_t lanes);  // until others come
  void branch(uint32_t taken, uint32_t target);
  void exit_lanes(uint32_t lanes);
  void push_frame(const Program* callee, uint32_t lanes);
  void pop_frame(uint32_t lanes);
  void use_frame();
  uint8_t* local_memory(int lane, uint64_t offset, uint64_t bytes);
  bool has_waited();  // griddepcontrol.wait, itself or a warp that a barrier puts before it
  void release();     // begins a new epoch after others have been given this one; orders the lanes
};

struct Cta {
  Cluster* cluster = nullptr;
  uint32_t rank = 0, id[3] = {0, 0, 0}, linear = 0;
  int sm = 0;
  std::unique_ptr<SharedMemory> shared;
  std::vector<std::unique_ptr<Warp>> warps;
  NamedBarrier barriers[16];
  std::map<uint32_t, Mbarrier> mbarriers;
  std::vector<std::deque<WgmmaIssue>> wgmma_issues;  // by warpgroup
  StoreBuffer stores;
  // Actors besides the warps: the copy engine, and after it the tensor cores by warpgroup.
  uint32_t copy_engine = 0, copy_clock = 0;
  std::vector<uint32_t> tensor_clock;
  uint32_t sent_clock = 0;  // of the last copy by another CTA
  uint32_t next_copy_epoch(const Cta& by) {
    ++copy_clock;
    if (&by != this) sent_clock = copy_clock;
    return make_epoch(copy_engine, copy_clock);
  }
  uint32_t free_registers = 0, running = 0;
  uint64_t fence_time = 0;          // last fence or release of gpu scope
  std::vector<uint64_t> grid_seen;  // by CTA: what it released and this CTA has acquired
  struct Visit {
    uint32_t clock = 0;
    const Inst* where = nullptr;
  };
  std::vector<Visit> accesses, arrivals;  // by actor, its last from another CTA; of mbarriers
  Clock left;                             // what those warps of this CTA had seen that have ended
  std::map<const Inst*, UndefinedRead> undefined_reads;
  bool triggered = false;  // griddepcontrol.launch_dependents, or ended
};

struct Cluster {
  Launch* launch = nullptr;
  uint32_t id[3] = {0, 0, 0};
  std::vector<std::unique_ptr<Cta>> ctas;
  uint32_t actors = 0, running = 0, barrier_phase = 0, barrier_arrived = 0;
  std::vector<Warp*> barrier_waiting;
  Clock seen, proxied, done_seen, done_proxied;  // of the barrier's current and last phase
  std::vector<uint32_t> dependency_waits;        // epochs of the warps that executed one
  // Clocks released through atomic and volatile accesses, by address.
  std::map<uint64_t, std::pair<Clock, Clock>> flags;
};

// What a dependent launch can rely on before its wait: launches before `complete` have ended and
// their results are visible; those before `ended` have ended.
struct Precedence {
  uint32_t complete = 0, ended = 0;
};

// What is launched.
struct LaunchShape {
  const Program* program = nullptr;
  StreamOperationPtr operation;  // its place among the operations of streams; null: alone
  uint32_t grid[3] = {1, 1, 1}, block[3] = {1, 1, 1}, cluster[3] = {1, 1, 1};
  uint32_t dynamic_shared = 0, dynamic_base = 0, shared_end = 0, entry_registers = 0, id = 0;
  bool programmatic = false;
  uint64_t param_base = 0;
  uint64_t ctas() const { return uint64_t{grid[0]} * grid[1] * grid[2]; }
  uint32_t ctas_per_cluster() const { return cluster[0] * cluster[1] * cluster[2]; }
  uint32_t warps_per_cta() const { return (block[0] * block[1] * block[2] + 31) / 32; }
  uint32_t warpgroups_per_cta() const { return (warps_per_cta() + 3) / 4; }
  // Warps, the copy engine, the tensor cores of each warpgroup.
  uint32_t actors_per_cta() const { return warps_per_cta() + 1 + warpgroups_per_cta(); }
};

// And how far it is. A shard runs every cluster_stride-th cluster.
struct Launch : LaunchShape {
  std::vector<uint32_t> grid_workspace;  // of a cooperative launch: its size and the grid's barrier
  // Dependent launches: every CTA had waited before it let the next launch start; one of them
  // executed griddepcontrol.launch_dependents, so that this launch and the next may overlap.
  bool waits_first = true, triggers_early = false;
  Precedence precedence;
  std::vector<uint64_t> released;  // by CTA: when it last released anything to the grid
  std::vector<uint64_t> proxied;   // by CTA: its last proxy fence that covers global memory
  // What atomic and volatile accesses pass on, by address; up to 4096 addresses and 256 CTAs, and
  // with more of either only `released` counts.
  std::unordered_map<uint64_t, std::vector<uint64_t>> grid_flags;
  bool tracks_flags = false;
  std::vector<uint8_t> params;  // aligned block at param_base
  uint64_t first_cluster = 0, cluster_stride = 1;
  uint64_t next_cluster = 0, clusters = 0, triggered = 0, finished = 0;
  uint64_t distinct_read = 0, distinct_written = 0;  // sectors
  std::vector<std::unique_ptr<Cluster>> resident;
  StoreBuffer held;  // what ended CTAs stored without a fence, where stores are buffered
  bool done() const { return finished == clusters; }
  template <typename F>
  void for_each_warp(F&& f) {
    for (auto& cluster : resident)
      for (auto& cta : cluster->ctas)
        for (auto& w : cta->warps) f(*w);
  }
  Precedence of_next() const;
};

}  // namespace l4k::emu
