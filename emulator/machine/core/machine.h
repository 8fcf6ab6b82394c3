// Schedules launches over the emulated SMs and owns everything that outlives a CTA. A launch whose
// CTAs cannot communicate is divided among shards: machines that have some of the SMs and the same
// memory, run some of the clusters, and see nothing of one another (shards.cpp).
#pragma once

#include "machine/core/state.h"
#include "machine/core/workers.h"

namespace l4k::emu {

struct KernelCounters {
  std::string kernel;
  uint64_t launches = 0, distinct_read_bytes = 0, distinct_written_bytes = 0;
  InstCounters total;
  std::map<std::string, uint64_t> issued;                   // by class of instruction
  std::vector<std::pair<std::string, InstCounters>> lines;  // by source line
};

// Where something happened.
struct Where {
  const Launch* launch = nullptr;
  uint32_t cta[3] = {0, 0, 0};
  int warp = -1;
  const Inst* inst = nullptr;
  Where() = default;
  Where(const Launch& l, uint64_t cta_index, uint32_t warp_index, const Inst* in);
  Where(const Warp* w, const Inst* in);  // nowhere without a warp
};

struct ShardConflict;

class Machine final : public FaultListener {
 public:
  explicit Machine(GlobalMemory& m) : memory(m) {}
  static Machine& get();

  Settings settings;
  uint32_t epoch = 0;  // how often it was configured
  GlobalMemory& memory;
  RangeCache ranges{memory};
  SectorTable sectors;
  StreamOrder order;
  Report report;                // the one that ended the run, since the last reset
  std::vector<Report> went_on;  // those after which it went on, each kind once per place
  ReportTally tally;
  std::mt19937_64 random{1};
  uint64_t progress = 0;  // bumped by everything another warp might wait for
  uint64_t instructions = 0;
  bool failed() const { return report.present; }
  std::vector<const Report*> reports() const;  // all of them, the one that ended the run last

  void configure(const Settings& s);
  void summarize();  // at exit: prints what did not end the run
  void reset();      // clears the report, settings stay
  void configure_from_environment();
  // Runs the launch; a kernel that can overlap a dependent one stays pending until `synchronize`.
  // False: an error, in `report`.
  bool launch(std::unique_ptr<Launch> l);
  bool synchronize();
  void perform(const std::function<void()>& operation);  // one that is no kernel; its faults
  std::map<std::string, KernelCounters> kernel_counters;
  std::map<std::string, const Program*> counted_programs;

  std::vector<KernelCounters> counters() const;
  void reset_counters();
  InstCounters* counters_of(const Program& p);  // by instruction

  bool goes_on_after(const Fault& f) override;

  // Called by instructions.
  void submit(BulkOp op);  // lands now in early mode
  void complete_bulk_groups(Warp& w, int lane, uint32_t allowed, bool read_only);
  void publish(Cta& cta, Warp* w);  // global stores become visible to the grid
  void publish_warp(Warp& w);       // ... to the CTA
  void drain(Cta& cta, Warp* w);    // ... to memory, with no order to anything
  void report_unused(Cta& cta);     // what it has read of undefined memory, to no effect
  void note_trigger(Cta& cta, bool waited, bool early);  // early: before the CTA's end
  bool dependency_done(const Launch& l) const;
  void warp_exited(Warp& w);
  uint64_t approximation_seed() const { return settings.perturb ? settings.seed : 0; }
  bool late() const { return settings.mode != Mode::early; }
  // Plain stores stay with their CTA: in shards, too, so that no thread's timing decides a value.
  bool buffers_stores() const { return late() || is_shard_; }
  bool chance(uint32_t one_in) { return random() % one_in == 0; }
  Launch* find_launch(uint32_t id);
  uint32_t next_launch() const { return next_launch_; }
  bool followed(const Launch& l) const { return launches_.back().get() != &l; }
  uint32_t first_sm() const { return first_sm_; }
  const Inst* landing() const { return at_.inst; }  // the copy that lands now, or null

 private:
  // Scheduling.
  void run_until_done(size_t keep);
  void abandon_failed();
  bool step();
  void collect_ready();
  bool run_ready();
  bool run_warp(Warp& w, uint32_t quantum);
  bool check_progress();
  void report_limit();
  bool wake_or_land();
  bool time_out_waits();
  template <typename F>
  void for_each_warp(F&& f) {
    for (auto& l : launches_) l->for_each_warp(f);
  }
  // Placement.
  bool place_clusters();
  bool place_cluster(Launch& l);
  std::vector<uint32_t> choose_sms(const Launch& l);
  bool fits(const Launch& l, uint32_t sm) const;
  void occupy(const Launch& l, uint32_t sm);
  void vacate(const Launch& l, uint32_t sm);
  void finish_cluster(Launch& l, size_t index);
  void finish_first_launch();
  void forget_ranges(const Launch& l);
  void drop_launches();
  // Shards.
  uint32_t shards_of(const Launch& l) const;
  void run_shards(Launch& l, uint32_t count);
  void begin_shard(const Machine& whole, const Launch& l, uint32_t index, uint32_t count,
                   uint64_t seed);
  void run_shard(const std::function<bool()>& stopped);
  void merge_shard(Launch& l, Machine& shard, ShardConflict* first);
  void report_conflict(const Launch& l, const ShardConflict& c);
  void end_shard();
  // Copies in flight.
  bool land_one();
  void land(size_t index);
  void land_copies_of(Warp& w);
  // Diagnosis.
  bool goes_on_without(const Fault& f);  // the instruction that `at_` names
  bool keep(const Fault& f, const Where& where, bool left_out);
  void record(const Fault& f, const Where& where, std::vector<std::string> table = {});
  size_t add_report(Report r);
  void take_reports(const Machine& shard);
  void print(const Report& r) const;
  void deadlock();
  std::string describe_wait(const Warp& w) const;

  // What runs: `inst` is null where it is the warp's current one.
  struct Position {
    Warp* warp = nullptr;
    const Inst* inst = nullptr;
  };
  Position at_;
  // What became of a kind at an instruction: an index of `went_on`, or ignored.
  std::map<std::pair<const FaultKind*, const Inst*>, size_t> kept_;

  struct Sm {
    uint32_t threads = 0, shared = 0, ctas = 0, registers = 0;
  };
  std::vector<Sm> sms_;
  std::vector<std::unique_ptr<Launch>> launches_;  // in stream order; the first is the oldest
  Precedence last_;  // of a launch that starts after all others have ended
  std::vector<Warp*> ready_, waiting_;
  uint64_t idle_progress_ = 0, idle_rounds_ = 0;
  std::vector<BulkOp> bulk_;
  uint32_t next_launch_ = 1, stuck_rounds_ = 0;
  uint64_t stuck_progress_ = 0;
  std::unordered_map<const Program*, std::vector<InstCounters>> tallies_;
  uint32_t first_sm_ = 0;
  bool is_shard_ = false;
  std::vector<std::unique_ptr<Machine>> shards_;
  Workers workers_;
  friend struct Warp;
};

// The index-th of these, the first dimension running fastest.
void unravel(uint64_t index, const uint32_t (&extent)[3], uint32_t (&at)[3]);
uint32_t registers_per_thread(const Program& p, uint32_t threads);
// CTAs of this shape that fit one SM; 0 when even one does not.
uint32_t occupancy(const Program& p, uint32_t threads, uint32_t shared_bytes);
std::string location(const Program& p, const Inst& in);

}  // namespace l4k::emu
