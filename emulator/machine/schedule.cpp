// Which warp runs next, what lands when nothing can, and what to say when nothing is left.
#include <algorithm>
#include <bit>
#include <cstdio>

#include "machine/async.h"
#include "machine/machine.h"
#include "machine/wgmma.h"

namespace l4k::emu {

void Machine::run_until_done(size_t keep) {
  while (!failed() && launches_.size() > keep) {
    if (!step()) break;
    while (!launches_.empty() && launches_.front()->done() && launches_.size() > keep) {
      finish_launch(*launches_.front());
      launches_.erase(launches_.begin());
    }
  }
  if (failed()) {
    if (settings.print) std::fprintf(stderr, "l4k emulator: %s\n", report.text().c_str());
    launches_.clear();
    bulk_.clear();
    sms_.assign(settings.sms, Sm{});
  }
}

bool Machine::step() {
  place_clusters();
  ready_.clear();
  waiting_.clear();
  bool wake_some = settings.mode != Mode::late;
  for (size_t li = launches_.size(); li-- > 0;) {
    for (auto& cluster : launches_[li]->resident)
      for (auto& cta : cluster->ctas)
        for (auto& w : cta->warps) {
          if (w->exited) continue;
          if (w->notified && wake_some && (settings.mode == Mode::early || chance(2))) w->wake();
          if (w->wait == Wait::none) ready_.push_back(w.get());
          else if (w->notified || w->wait == Wait::poll || w->wait == Wait::warpgroup)
            waiting_.push_back(w.get());
        }
    // Late: a dependent launch runs ahead of its predecessor for as long as it can.
    if (!ready_.empty() && settings.mode == Mode::late) break;
  }
  if (ready_.empty()) {
    bool woke = false;
    uint64_t running = 0;
    for (auto& l : launches_)
      for (auto& cluster : l->resident)
        for (auto& cta : cluster->ctas)
          for (auto& w : cta->warps) {
            if (w->exited) continue;
            ++running;
            bool retry = w->wait == Wait::poll || w->wait == Wait::registers ||
                         w->wait == Wait::grid || w->wait == Wait::warpgroup;
            if (w->notified || (retry && w->wait_progress != progress)) w->wake(), woke = true;
          }
    if (woke || land_one()) return true;
    size_t before = launches_.size();
    for (size_t i = 0; i < launches_.size();) {
      if (launches_[i]->done() && i == 0 && launches_.size() > 1) {
        finish_launch(*launches_[0]);
        launches_.erase(launches_.begin());
      } else {
        ++i;
      }
    }
    if (launches_.size() != before) return true;
    if (!running) return false;
    if (stuck_progress_ != progress) stuck_progress_ = progress, stuck_rounds_ = 0;
    bool retried = false;
    if (stuck_rounds_++ < 64)
      for (auto& l : launches_)
        for (auto& cluster : l->resident)
          for (auto& cta : cluster->ctas)
            for (auto& w : cta->warps)
              if (!w->exited && (w->wait == Wait::poll || w->wait == Wait::mbarrier))
                w->wake(), w->timed_out = true, retried = true;
    if (!retried) deadlock();
    return retried;
  }
  // Warps that spin without ever looking parked must not keep copies from landing.
  if (idle_progress_ != progress) idle_progress_ = progress, idle_rounds_ = 0;
  if (++idle_rounds_ % 1000 == 0) {
    for (Warp* w : waiting_) w->wake();
    land_one();
  }
  if (idle_rounds_ > 1000000) {
    record(Fault{"deadlock", "warps spin for ever and nothing changes", -1, false, 0}, ready_[0],
           &ready_[0]->current());
    return false;
  }
  std::shuffle(ready_.begin(), ready_.end(), random);
  for (Warp* w : ready_) {
    uint32_t quantum = random() % 4 ? 256 : 1 + static_cast<uint32_t>(random() % 24);
    try {
      w->run(quantum);
    } catch (const Fault& f) {
      record(f, w, &w->current());
      return false;
    }
    if (settings.mode == Mode::random && chance(3)) land_one();
    if (settings.mode == Mode::random && !w->exited && chance(2)) compute_one(*w);
    if (failed()) return false;
  }
  if (instructions > settings.max_instructions) {
    record(Fault{"instruction-limit", "the instruction limit was reached", -1, false, 0}, nullptr,
           nullptr);
    return false;
  }
  for (size_t li = 0; li < launches_.size(); ++li)
    for (size_t i = launches_[li]->resident.size(); i-- > 0;)
      if (!launches_[li]->resident[i]->running) finish_cluster(*launches_[li], i);
  return !failed();
}

void Machine::submit(BulkOp op) {
  bulk_.push_back(std::move(op));
  if (settings.mode == Mode::early) land(bulk_.size() - 1);
}

void Machine::land(size_t index) {
  BulkOp& op = bulk_[index];
  ++progress;
  try {
    if (!op.has_read && op.read) op.read();
    op.has_read = true;
    if (!op.landed) op.land();
    op.landed = true;
  } catch (const Fault& f) {
    record(f, op.warp, op.inst);
    return;
  }
  if (op.group == ~0u || op.released) bulk_.erase(bulk_.begin() + static_cast<ptrdiff_t>(index));
}

// Any copy may be next: they are not ordered among each other.
bool Machine::land_one() {
  std::vector<size_t> candidates;
  for (size_t i = 0; i < bulk_.size(); ++i)
    if (!bulk_[i].landed) candidates.push_back(i);
  std::vector<Warp*> copying;
  for (auto& l : launches_)
    for (auto& cluster : l->resident)
      for (auto& cta : cluster->ctas)
        for (auto& w : cta->warps)
          if (!w->copies.empty()) copying.push_back(w.get());
  size_t n = candidates.size() + copying.size();
  if (!n) return false;
  size_t pick = random() % n;
  if (pick < candidates.size()) {
    land(candidates[pick]);
  } else {
    Warp* w = copying[pick - candidates.size()];
    const CpAsync& front = w->copies.front();
    const Inst* in = front.inst;
    uint32_t lanes = front.mask, up_to = front.sequence;
    if (!w->deferred_arrives.empty()) {
      // Thread by thread: an mbarrier that counts too few of them completes too early.
      uint32_t skip = static_cast<uint32_t>(random() % static_cast<uint32_t>(std::popcount(lanes)));
      while (skip--) lanes &= lanes - 1;
      lanes &= ~lanes + 1;
      for (const auto& a : w->deferred_arrives)
        if (lanes >> a.lane & 1) {
          up_to = std::max(up_to, a.after);
          break;
        }
    }
    try {
      land_copies(*w, up_to, lanes);
    } catch (const Fault& f) {
      record(f, w, in);
    }
  }
  return true;
}

void Machine::complete_bulk_groups(Warp& w, int lane, uint32_t allowed, bool read_only) {
  uint32_t open = w.bulk_group[lane];
  for (size_t i = bulk_.size(); i-- > 0;) {
    BulkOp& op = bulk_[i];
    if (op.warp != &w || op.lane != lane || op.group == ~0u || op.group + allowed >= open) continue;
    if (!op.has_read && op.read) op.read();
    op.has_read = true;
    if (!op.released) op.release();
    op.released = true;
    if (!read_only || op.landed) land(i);
  }
  ++progress;
}

std::string Machine::describe_wait(const Warp& w) const {
  const Launch& l = *w.cta->cluster->launch;
  std::string s = l.program->ptx->name + " CTA (" + std::to_string(w.cta->id[0]) + ", " +
                  std::to_string(w.cta->id[1]) + ", " + std::to_string(w.cta->id[2]) + ") warp " +
                  std::to_string(w.index) + " lanes " + hex(w.live) + ": ";
  switch (w.wait) {
    case Wait::mbarrier: {
      s += "mbarrier " + hex(w.wait_address) + " parity " + std::to_string(w.wait_parity);
      if (w.wait_cta != w.cta) s += " of CTA rank " + std::to_string(w.wait_cta->rank);
      auto it = w.wait_cta->mbarriers.find(w.wait_address);
      if (it != w.wait_cta->mbarriers.end())
        s += " (in phase " + std::to_string(it->second.phase) + ", still expects " +
             std::to_string(it->second.pending) + " of " + std::to_string(it->second.count) +
             " arrivals and " + std::to_string(it->second.tx) + " bytes)";
      break;
    }
    case Wait::barrier: {
      const NamedBarrier& b = w.cta->barriers[w.wait_barrier];
      s += "barrier " + std::to_string(w.wait_barrier) + " (" + std::to_string(b.arrived) + " of " +
           (b.expected ? std::to_string(b.expected) : "all") + " threads are there)";
      break;
    }
    case Wait::cluster_barrier:
      s += "barrier.cluster (" + std::to_string(w.cta->cluster->barrier_arrived) + " warps there)";
      break;
    case Wait::registers:
      s += "setmaxnreg (" + std::to_string(w.cta->free_registers) + " registers free)";
      break;
    case Wait::warpgroup:
      s += "the rest of its warpgroup";
      break;
    case Wait::grid:
      s += "griddepcontrol.wait";
      break;
    default:
      s += "polls";
      break;
  }
  bool passed = w.wait == Wait::barrier && w.pc > 0;  // its program counter is already behind it
  return s + " at " + location(*w.program, w.program->code[w.pc - passed]);
}

void Machine::deadlock() {
  Fault f{"deadlock", "every warp waits, and no copy is in flight", -1, false, 0};
  Warp* first = nullptr;
  const Inst* at = nullptr;
  std::vector<std::string> table;
  for (auto& l : launches_)
    for (auto& cluster : l->resident)
      for (auto& cta : cluster->ctas)
        for (auto& w : cta->warps) {
          if (w->exited) continue;
          if (!first) first = w.get();
          if (w->wait == Wait::registers) {
            f.kind = "setmaxnreg-pool";
            f.message = "setmaxnreg asks for more registers than the CTA's pool holds";
            first = w.get();
            at = nullptr;
          }
          if (w->wait == Wait::warpgroup && f.kind == "deadlock" &&
              !cta->wgmma_issues[w->index / 4].empty()) {
            const WgmmaIssue& issue = cta->wgmma_issues[w->index / 4].front();
            f.kind = "missing-lane";
            f.message = "some warps of warpgroup " + std::to_string(w->index / 4) +
                        " never execute a wgmma that the others wait for";
            first = w.get();
            at = issue.inst;
          }
          if (w->wait == Wait::warpgroup && f.kind == "deadlock") {
            f.kind = "missing-lane";
            f.message = "a wgmma that other warps of the warpgroup never execute";
            first = w.get();
          }
          if (table.size() < 64) table.push_back(describe_wait(*w));
        }
  record(f, first, at ? at : first ? &first->current() : nullptr);
  report.table = std::move(table);
}

namespace {

std::string file_name(const PtxModule& m, int file) {
  auto it = m.files.find(file);
  return it == m.files.end() ? "?" : it->second;
}

// The callers that a place was inlined into, innermost first: each names the place of an earlier
// .loc, which has its own.
std::vector<std::string> callers(const PtxModule& m, size_t at) {
  std::vector<std::string> list;
  for (;;) {
    const SourceLocation& l = m.locations[at];
    if (!l.outer_line) return list;
    list.push_back(file_name(m, l.outer_file) + ":" + std::to_string(l.outer_line));
    do {
      if (!at--) return list;
    } while (m.locations[at].file != l.outer_file || m.locations[at].line != l.outer_line ||
             m.locations[at].column != l.outer_column);
  }
}

}  // namespace

std::string location(const Program& p, const Inst& in) {
  if (!in.ptx) return "?";
  auto at = static_cast<size_t>(in.ptx->location);
  const SourceLocation& l = p.module->locations[at];
  std::string s = file_name(*p.module, l.file) + ":" + std::to_string(l.line),
              separator = " (inlined at ";
  for (const auto& place : callers(*p.module, at)) {
    s += separator + place;
    separator = ", ";
  }
  return separator == ", " ? s + ")" : s;
}

void Machine::record(const Fault& f, Warp* w, const Inst* in) {
  if (report.present) return;
  report = Report{};
  report.present = true;
  report.kind = f.kind;
  report.message = f.message;
  report.lane = f.lane;
  report.has_address = f.has_address;
  report.address = f.address;
  if (w) locate(w, in);
}

void Machine::locate(Warp* w, const Inst* in) {
  report.kernel = w->cta->cluster->launch->program->ptx->name;
  for (int i = 0; i < 3; ++i) report.cta[i] = w->cta->id[i];
  report.warp = static_cast<int>(w->index);
  if (!in || !in->ptx) return;
  report.instruction = in->ptx->text();
  report.ptx_line = in->ptx->line;
  const PtxModule& mod = *w->program->module;
  auto at = static_cast<size_t>(in->ptx->location);
  const SourceLocation& l = mod.locations[at];
  if (l.line) report.file = file_name(mod, l.file);
  report.line = l.line;
  report.inlined_at = callers(mod, at);
}

}  // namespace l4k::emu
