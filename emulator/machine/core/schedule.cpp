// Which warp runs next, and what happens when none can.
#include <algorithm>

#include "machine/core/machine.h"

namespace l4k::emu {

void Machine::run_until_done(size_t keep) {
  FaultListener::current = this;
  while (!failed() && launches_.size() > keep) {
    if (!step()) break;
    while (launches_.size() > keep && launches_.front()->done()) finish_first_launch();
  }
  if (failed()) abandon_failed();
}

void Machine::abandon_failed() {
  drop_launches();
  bulk_.clear();
  sms_.assign(settings.sms, Sm{});
}

// False: nothing is left to do, or something is wrong.
bool Machine::step() {
  place_clusters();
  collect_ready();
  if (ready_.empty()) return wake_or_land();
  if (!check_progress() || !run_ready()) return false;
  if (instructions > settings.max_instructions) report_limit();
  for (auto& l : launches_)
    for (size_t i = l->resident.size(); i-- > 0;)
      if (!l->resident[i]->running) finish_cluster(*l, i);
  return !failed();
}

void Machine::report_limit() {
  record(Fault{"instruction-limit", "the instruction limit was reached", -1, false, 0}, {});
}

// The warps that can run, the newest launch's first, and those that a change may wake.
void Machine::collect_ready() {
  ready_.clear();
  waiting_.clear();
  for (size_t i = launches_.size(); i-- > 0;) {
    launches_[i]->for_each_warp([&](Warp& w) {
      if (w.exited) return;
      if (w.notified &&
          (settings.mode == Mode::early || (settings.mode == Mode::random && chance(2))))
        w.wake();
      if (w.wait == Wait::none) ready_.push_back(&w);
      else if (w.notified || w.wait == Wait::poll || w.wait == Wait::warpgroup)
        waiting_.push_back(&w);
    });
    // Late: a dependent launch runs ahead of its predecessor for as long as it can.
    if (!ready_.empty() && settings.mode == Mode::late) break;
  }
}

bool Machine::run_ready() {
  std::shuffle(ready_.begin(), ready_.end(), random);
  for (Warp* w : ready_) {
    uint32_t quantum = random() % 4 ? 256 : 1 + static_cast<uint32_t>(random() % 24);
    if (!run_warp(*w, quantum)) return false;
    if (settings.mode == Mode::random && chance(3)) land_one();
    if (settings.mode == Mode::random && !w->exited && chance(2)) w->compute_one();
    if (failed()) return false;
  }
  return true;
}

bool Machine::run_warp(Warp& w, uint32_t quantum) {
  at_ = {&w};
  uint32_t rest = 0;  // of an instruction that some lanes could not perform
  do {
    try {
      rest ? w.perform_rest(rest) : w.run(quantum);
      return true;
    } catch (const Fault& f) {
      if (!goes_on_without(f)) return record(f, {&w, &w.current()}), false;
      rest = w.leave_out(f);
      idle_rounds_ += 20;  // a loop around it may have become endless
    }
  } while (rest);
  return true;
}

// Warps that spin without ever parking must not keep copies from landing.
bool Machine::check_progress() {
  if (idle_progress_ != progress) idle_progress_ = progress, idle_rounds_ = 0;
  if (++idle_rounds_ % 1000 == 0) {
    for (Warp* w : waiting_) w->wake();
    land_one();
  }
  if (idle_rounds_ <= 1000000) return true;
  record(Fault{"deadlock", "warps spin for ever and nothing changes", -1, false, 0},
         {ready_[0], &ready_[0]->current()});
  return false;
}

// No warp can run: wakes those for which something has changed, else lands a copy, else ends the
// oldest launch, else lets waits time out.
bool Machine::wake_or_land() {
  bool woke = false, running = false;
  for_each_warp([&](Warp& w) {
    if (w.exited) return;
    running = true;
    bool retry = w.wait == Wait::poll || w.wait == Wait::registers || w.wait == Wait::grid ||
                 w.wait == Wait::warpgroup;
    if (w.notified || (retry && w.wait_progress != progress)) w.wake(), woke = true;
  });
  if (woke || land_one()) return true;
  bool finished = false;
  while (launches_.size() > 1 && launches_.front()->done()) finish_first_launch(), finished = true;
  if (finished) return true;
  return running && time_out_waits();
}

bool Machine::time_out_waits() {
  if (stuck_progress_ != progress) stuck_progress_ = progress, stuck_rounds_ = 0;
  bool retried = false;
  if (stuck_rounds_++ < 64)
    for_each_warp([&](Warp& w) {
      if (w.exited || (w.wait != Wait::poll && w.wait != Wait::mbarrier)) return;
      w.wake();
      w.timed_out = retried = true;
    });
  if (!retried) deadlock();
  return retried;
}

}  // namespace l4k::emu
