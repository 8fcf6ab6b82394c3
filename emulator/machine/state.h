// The machine: launches, clusters, CTAs, warps and what they share.
#pragma once

#include <algorithm>
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
#include "check/shared_memory.h"
#include "machine/program.h"
#include "tensor/mma.h"

namespace l4k::emu {

struct Cta;
struct Cluster;
struct Launch;
class Machine;

inline constexpr uint64_t kSharedWindow = uint64_t{1}
                                          << 48;  // generic addresses, not host pointers
inline constexpr uint64_t kLocalWindow = uint64_t{1} << 49;
inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr uint32_t kStarted = 1;  // a warp's clock before its first access

enum class Mode : uint8_t { late, early, random };

struct Settings {
  Mode mode = Mode::late;
  uint64_t seed = 1;
  uint32_t sms = 4;
  bool strict = false;
  Fp8Accumulation fp8 = Fp8Accumulation::hopper;
  bool print = false;   // reports go to stderr as well
  bool perturb = true;  // move approximations inside their documented error
  uint64_t max_instructions = uint64_t{1} << 40;
};

// State of a register: lanes that must not be used, and what is in flight.
enum class Busy : uint8_t { none, accumulator, fragment, alias };
struct RegState {
  uint32_t bad = kAllLanes;
  uint32_t tag = 0;  // Busy in the top two bits; below, the warp's fence count at the last write
  Busy busy() const { return static_cast<Busy>(tag >> 30); }
  uint32_t fence() const { return tag & 0x1fffffff; }
  bool result() const { return tag & kResult; }  // of a wgmma, and not touched since
  static constexpr uint32_t kResult = 1u << 29;
};

struct Frame {
  const Program* program = nullptr;
  std::vector<uint8_t> registers;
  std::vector<RegState> states;
  std::vector<uint8_t> params;  // 32 lanes, each ptx->param_bytes
  uint64_t local_base = 0;
  const Inst* call = nullptr;  // the instruction that called
  uint32_t lane_pc[32] = {};   // the caller's lanes
  uint32_t live = 0;
};

// When a warp last looked at what other CTAs may have written, through an atomic or volatile
// access, and when an acquire or a fence made that count. Barriers pass it on.
struct Sight {
  uint64_t observed = 0, acquired = 0;
  void join(const Sight& other) {
    observed = std::max(observed, other.observed);
    acquired = std::max(acquired, other.acquired);
  }
};

struct Mbarrier {
  uint32_t count = 0, pending = 0;
  int64_t tx = 0;
  uint64_t phase = 0;
  uint32_t init_epoch = 0;
  int64_t fenced_phase = -1;  // of the cluster barrier, at fence.mbarrier_init
  Sight next_sight, done_sight;
  Clock next_seen, next_proxied, done_seen, done_proxied;
};

struct NamedBarrier {
  uint32_t arrived = 0, expected = 0;  // threads; expected 0: every thread of the CTA
  std::vector<Warp*> waiting;
  Sight sight;
  uint32_t red_count = 0, red_total = 0;  // bar.red: predicates that are true, of how many
  Clock seen, proxied;
};

// A copy made while the source's value is still being computed: repeated when it is known.
struct DeferredMove {
  Src to, from;
  uint32_t bytes, lanes;
  bool done;  // the value was known already; only the flag is left
};
struct PendingWgmma {
  const Inst* inst = nullptr;
  uint64_t seq = 0;
  uint32_t group = ~0u;  // ~0u: not committed
  uint64_t descriptor_a = 0, descriptor_b = 0;
  bool scale_d = true, computed = false, released = false;  // released: its reads have ended
  std::vector<uint32_t> chunks;  // 16-byte chunks of shared memory that it reads
  std::vector<DeferredMove> moves;
};
struct CpAsync {
  uint32_t mask = 0, bytes = 0, group = 0, sequence = 0;
  uint32_t destination[32] = {}, source_bytes[32] = {};
  uint64_t source[32] = {};
  const Inst* inst = nullptr;
};
struct DeferredArrive {  // cp.async.mbarrier.arrive: fires when the lane's earlier copies have
                         // landed
  Cta* cta;
  uint32_t address, after;  // after: cp.async sequence number
  int lane;
};

// An asynchronous bulk operation. Loads land and are gone; stores of a bulk group read their shared
// memory, land, and are released when their thread waits for the group.
struct BulkOp {
  Warp* warp = nullptr;
  const Inst* inst = nullptr;
  int lane = 0;
  uint32_t group = ~0u;  // bulk groups are per thread; ~0u: completes through an mbarrier
  bool has_read = false, landed = false, released = false;
  std::function<void()> read, land, release;
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

struct Warp {
  Machine* m = nullptr;
  Cta* cta = nullptr;
  uint32_t index = 0;
  // Execution.
  const Program* program = nullptr;
  uint32_t pc = 0, mask = 0, active = 0, live = 0, join = ~0u, next = 0, dead = 0;
  uint32_t stalled = 0, gathering = 0;  // lanes that wait for something; for the rest of the warp
  uint32_t lane_pc[32] = {};
  uint8_t* base[2] = {nullptr, nullptr};  // registers, constant pool
  RegState* state = nullptr;
  std::vector<std::unique_ptr<Frame>> frames;
  uint64_t bias[4] = {0, 0, 0, 0};
  uint32_t carry = 0;
  bool exited = false, repeat = false, regrouped = false;
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
  Sight sight;                  // of the rest of the grid
  uint64_t proxied = 0;         // its last proxy fence that covers global memory

  template <typename T>
  T* reg(const Src& s) {
    return reinterpret_cast<T*>(base[s.reg == 0] + s.offset);
  }
  const Inst& current() const { return program->code[pc]; }
  InstCounters& counters() { return program->counters[pc]; }
  void run(uint32_t budget);
  void regroup();
  // The current lanes cannot go on: repeats the instruction later. Returns with the warp parked, or
  // with other lanes of it selected.
  void park(Wait why);
  void wake();
  // True when the lanes in `required` are all here; else lets the missing lanes run first, and
  // reports missing-lane when they cannot come.
  bool gather(uint32_t required, const char* what);
  void use(const Src& s, uint32_t lanes) {  // reports an undefined or in-flight register
    if (state[s.reg].bad & lanes) bad_source(s, lanes, false);
  }
  void written(const Src& d, uint32_t lanes, uint32_t bad = 0) {
    RegState& r = state[d.reg];
    if (r.tag >> 30) busy_write(d);
    r.bad = (r.bad & ~lanes) | bad;
    r.tag = fence_count;
  }
  uint32_t bad_source(const Src& s, uint32_t lanes, bool propagates);
  void busy_write(const Src& d);
  void touch_results(const Inst& in);
  void branch(uint32_t taken, uint32_t target);
  void exit_lanes(uint32_t lanes);
  void push_frame(const Program* callee, uint32_t lanes);
  void pop_frame(uint32_t lanes);
  void use_frame();
  uint8_t* local_memory(int lane, uint64_t offset, uint64_t bytes);
  bool has_waited();  // griddepcontrol.wait, itself or a warp that a barrier puts before it
  void release();     // begins a new epoch after others have been given this one
};

// What the four warps of a warpgroup must agree on.
struct WgmmaIssue {
  uint64_t seq = 0, descriptor_b = 0;
  const Inst* inst = nullptr;
  uint32_t warps = 0;
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
  uint32_t agent = 0,
           agent_clock = 0;  // the copy engine's actor; the warpgroups' tensor cores follow
  std::vector<uint32_t> tensor_clock;  // by warpgroup
  uint32_t free_registers = 0, running = 0;
  uint64_t fence_time = 0;          // last fence or release of gpu scope
  std::vector<uint64_t> grid_seen;  // by CTA: what it released and this CTA has acquired
  // By actor: the clock of its last access from another CTA, and where. What those warps of this
  // CTA had seen that have ended.
  std::vector<std::pair<uint32_t, const Inst*>> visits;
  Clock left;
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

struct Launch {
  const Program* program = nullptr;
  const Image* image = nullptr;
  uint32_t grid[3] = {1, 1, 1}, block[3] = {1, 1, 1}, cluster[3] = {1, 1, 1};
  uint32_t dynamic_shared = 0, dynamic_base = 0, shared_end = 0, entry_registers = 0, id = 0;
  bool programmatic = false, cooperative = false;
  // Dependent launches: every CTA had waited before it let the next launch start; launches before
  // `complete` have ended when this one starts.
  bool waits_first = true;
  uint32_t complete = 0;
  std::vector<uint64_t> released;  // by CTA: when it last released anything to the grid
  std::vector<uint64_t> proxied;   // by CTA: its last proxy fence that covers global memory
  // What atomic and volatile accesses pass on, by address; up to 4096 addresses and 256 CTAs, and
  // with more of either only `released` counts.
  std::unordered_map<uint64_t, std::vector<uint64_t>> grid_flags;
  bool tracks_flags = false;
  std::vector<uint8_t> params;  // aligned block at param_base
  uint64_t param_base = 0;
  uint64_t next_cluster = 0, clusters = 0, triggered = 0, finished = 0;
  uint64_t distinct_read = 0, distinct_written = 0;  // sectors
  std::vector<std::unique_ptr<Cluster>> resident;
  std::vector<StoreBuffer> held;  // late mode: what ended CTAs stored without a fence
  bool done() const { return finished == clusters; }
  uint32_t next_complete() const { return waits_first ? id : complete; }
  uint32_t warps_per_cta() const { return (block[0] * block[1] * block[2] + 31) / 32; }
};

}  // namespace l4k::emu
