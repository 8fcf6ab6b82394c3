// Reports of faults: where they happened, and whether the run goes on.
#include <algorithm>
#include <cstdio>

#include "machine/core/machine.h"

namespace l4k::emu {
namespace {

constexpr size_t kIgnored = ~size_t{0};

SourcePlace place(const PtxModule& m, int file, int line) {
  auto it = m.files.find(file);
  return {it == m.files.end() ? "?" : it->second, line};
}

// The place of an instruction, and the callers that it was inlined into, innermost first: each
// names the place of an earlier .loc, which has its own.
std::vector<SourcePlace> places_of(const Program& p, const Inst& in) {
  const PtxModule& m = *p.module;
  auto at = static_cast<size_t>(in.ptx->location);
  std::vector<SourcePlace> list;
  if (m.locations[at].line) list.push_back(place(m, m.locations[at].file, m.locations[at].line));
  for (;;) {
    const SourceLocation& l = m.locations[at];
    if (!l.outer_line) return list;
    list.push_back(place(m, l.outer_file, l.outer_line));
    do {
      if (!at--) return list;
    } while (m.locations[at].file != l.outer_file || m.locations[at].line != l.outer_line ||
             m.locations[at].column != l.outer_column);
  }
}

Report make_report(const Fault& f, const Warp* w, const Inst* in) {
  Report r;
  r.present = true;
  r.kind = &*f.kind;
  r.message = f.message;
  r.lane = f.lane;
  r.has_address = f.has_address;
  r.address = f.address;
  if (!w) return r;
  r.kernel = w->cta->cluster->launch->program->ptx->name;
  std::copy(w->cta->id, w->cta->id + 3, r.cta);
  r.warp = static_cast<int>(w->index);
  if (!in || !in->ptx) return r;
  r.instruction = in->ptx->text();
  r.ptx_line = in->ptx->line;
  r.places = places_of(*w->program, *in);
  return r;
}

}  // namespace

std::string location(const Program& p, const Inst& in) {
  if (!in.ptx) return "?";
  std::string s, separator;
  for (const SourcePlace& place : places_of(p, in)) {
    s += separator + place.text();
    separator = separator.empty() ? " (inlined at " : ", ";
  }
  if (s.empty()) return "PTX line " + std::to_string(in.ptx->line);
  return separator == ", " ? s + ")" : s;
}

void Machine::record(const Fault& f, Warp* w, const Inst* in, std::vector<std::string> table) {
  if (report.present) return;
  report = make_report(f, w, in);
  report.table = std::move(table);
  print(report);
}

std::vector<const Report*> Machine::reports() const {
  std::vector<const Report*> all;
  for (const Report& r : went_on) all.push_back(&r);
  if (failed()) all.push_back(&report);
  return all;
}

void Machine::print(const Report& r) const {
  if (settings.print) std::fprintf(stderr, "l4k emulator: %s\n", r.text().c_str());
}

void Machine::summarize() {
  synchronize();
  std::string s = tally.text();
  if (settings.print && !s.empty()) std::fprintf(stderr, "l4k emulator: %s\n", s.c_str());
}

bool Machine::goes_on_after(const Fault& f) { return keep(f, false); }
bool Machine::goes_on_without(const Fault& f) {
  bool goes_on = keep(f, true);
  tally.left_out += goes_on;
  return goes_on;
}

// A kind at an instruction is looked into once: unrolled loops have many of one source line.
bool Machine::keep(const Fault& f, bool left_out) {
  const FaultKind& kind = *f.kind;
  const Inst* in = at_.inst ? at_.inst : &at_.warp->current();
  auto it = kept_.find({&kind, in});
  if (it == kept_.end()) {
    Report r = make_report(f, at_.warp, in);
    size_t index = kIgnored;
    if (!settings.reports.ignores(kind, r.places)) {
      if (settings.reports.stops(kind)) return false;
      r.went_on = true, r.left_out = left_out, r.count = 0;
      auto same = [&](const Report& other) { return r.same_place(other); };
      auto found = std::find_if(went_on.begin(), went_on.end(), same);
      index = static_cast<size_t>(found - went_on.begin());
      if (found == went_on.end()) {
        print(r);
        ++tally.places;
        went_on.push_back(std::move(r));
      }
    }
    it = kept_.insert({{&kind, in}, index}).first;
  }
  if (it->second == kIgnored) {
    ++tally.ignored;
    return true;
  }
  ++went_on[it->second].count;
  ++tally.reports[static_cast<size_t>(kind.severity)];
  return true;
}

}  // namespace l4k::emu
