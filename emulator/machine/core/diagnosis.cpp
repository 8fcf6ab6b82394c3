// What to say when a launch fails: where it happened, and who waits for what.
#include <cstdio>

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
    } else if (w.wait == Wait::warpgroup && f.kind == "deadlock") {
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

void Machine::fail(const Fault& f) {
  record(f, nullptr, nullptr);
  if (settings.print) std::fprintf(stderr, "l4k emulator: %s\n", report.text().c_str());
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
