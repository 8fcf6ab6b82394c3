// Schedules launches over the emulated SMs and owns everything that outlives a CTA.
#pragma once

#include "machine/core/state.h"

namespace l4k::emu {

struct KernelCounters {
  std::string kernel;
  uint64_t launches = 0, distinct_read_bytes = 0, distinct_written_bytes = 0;
  InstCounters total;
  std::map<std::string, uint64_t> issued;                   // by class of instruction
  std::vector<std::pair<std::string, InstCounters>> lines;  // by source line
};

class Machine {
 public:
  static Machine& get();

  Settings settings;
  GlobalMemory memory;
  SectorTable sectors;
  StreamOrder order;
  Report report;  // first error since the last reset
  std::mt19937_64 random{1};
  uint64_t progress = 0;  // bumped by everything another warp might wait for
  uint64_t instructions = 0;
  bool failed() const { return report.present; }

  void configure(const Settings& s);
  void reset();  // clears the report, settings stay
  void configure_from_environment();
  // Runs the launch; a kernel that can overlap a dependent one stays pending until `synchronize`.
  // False: an error, in `report`.
  bool launch(std::unique_ptr<Launch> l);
  bool synchronize();
  // An error of an operation that is no kernel.
  void fail(const Fault& f);
  std::map<std::string, KernelCounters> kernel_counters;
  std::map<std::string, const Program*> counted_programs;

  std::vector<KernelCounters> counters() const;
  void reset_counters();

  // Called by instructions.
  void submit(BulkOp op);  // lands now in early mode
  void complete_bulk_groups(Warp& w, int lane, uint32_t allowed, bool read_only);
  void publish(Cta& cta, Warp* w);  // global stores become visible to the grid
  void publish_warp(Warp& w);       // ... to the CTA
  void drain(Cta& cta, Warp* w);    // ... to memory, with no order to anything
  void note_trigger(Cta& cta, bool waited);
  bool dependency_done(const Launch& l) const;
  void warp_exited(Warp& w);
  uint64_t approximation_seed() const { return settings.perturb ? settings.seed : 0; }
  bool late() const { return settings.mode != Mode::early; }
  bool chance(uint32_t one_in) { return random() % one_in == 0; }
  Launch* find_launch(uint32_t id);
  uint32_t next_launch() const { return next_launch_; }
  bool followed(const Launch& l) const { return launches_.back().get() != &l; }

 private:
  // Scheduling.
  void run_until_done(size_t keep);
  bool step();
  void collect_ready();
  bool run_ready();
  bool check_progress();
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
  // Copies in flight.
  bool land_one();
  void land(size_t index);
  void land_copies_of(Warp& w);
  // Diagnosis.
  void record(const Fault& f, Warp* w, const Inst* in);
  void locate(Warp* w, const Inst* in);
  void deadlock();
  std::string describe_wait(const Warp& w) const;

  struct Sm {
    uint32_t threads = 0, shared = 0, ctas = 0, registers = 0;
  };
  std::vector<Sm> sms_;
  std::vector<std::unique_ptr<Launch>> launches_;  // in stream order; the first is the oldest
  uint32_t last_complete_ = 0;  // `complete` of a launch that starts after all others have ended
  std::vector<Warp*> ready_, waiting_;
  uint64_t idle_progress_ = 0, idle_rounds_ = 0;
  std::vector<BulkOp> bulk_;
  uint32_t next_launch_ = 1, stuck_rounds_ = 0;
  uint64_t stuck_progress_ = 0;
  friend struct Warp;
};

uint32_t registers_per_thread(const Program& p, uint32_t threads);
// CTAs of this shape that fit one SM; 0 when even one does not.
uint32_t occupancy(const Program& p, uint32_t threads, uint32_t shared_bytes);
std::string location(const Program& p, const Inst& in);

}  // namespace l4k::emu
