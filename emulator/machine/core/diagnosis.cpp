// What to say when nothing can run: who waits for what.
#include "machine/core/machine.h"

namespace l4k::emu {

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
  bool passed = w.wait == Wait::barrier && w.pc > 0;  // its program counter is already past it
  return s + " at " + location(*w.program, w.program->code[w.pc - passed]);
}

void Machine::deadlock() {
  Fault f{"deadlock", "every warp waits, and no copy is in flight", -1, false, 0};
  Warp* first = nullptr;
  const Inst* at = nullptr;
  std::vector<std::string> table;
  for_each_warp([&](Warp& w) {
    if (w.exited) return;
    if (!first) first = &w;
    if (w.wait == Wait::registers) {
      f.kind = "setmaxnreg-pool";
      f.message = "setmaxnreg asks for more registers than the CTA's pool holds";
      first = &w;
      at = nullptr;
    } else if (w.wait == Wait::warpgroup && &*f.kind == find_fault_kind("deadlock")) {
      const auto& issues = w.cta->wgmma_issues[w.index / 4];
      f.kind = "missing-lane";
      f.message = issues.empty() ? "a wgmma that other warps of the warpgroup never execute"
                                 : "some warps of warpgroup " + std::to_string(w.index / 4) +
                                       " never execute a wgmma that the others wait for";
      first = &w;
      if (!issues.empty()) at = issues.front().inst;
    }
    if (table.size() < 64) table.push_back(describe_wait(w));
  });
  record(f, first, at ? at : first ? &first->current() : nullptr, std::move(table));
}

void Machine::report_unused(Cta& cta) {
  Position ends = at_;
  for (const auto& [inst, read] : cta.undefined_reads) {
    if (read.used) continue;
    Fault f{"uninitialised-unused",
            "reads shared memory that nobody wrote; nothing that the kernel does depends on it",
            read.lane, true, read.from.address};
    at_ = {cta.warps[read.warp].get(), inst};
    if (keep(f, false)) continue;
    record(f, at_.warp, inst);
    throw f;
  }
  at_ = ends;
}

}  // namespace l4k::emu
