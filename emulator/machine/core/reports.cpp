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

Report make_report(const Fault& f, const Where& where) {
  Report r;
  r.present = true;
  r.kind = &*f.kind;
  r.message = f.message;
  r.lane = f.lane;
  r.has_address = f.has_address;
  r.address = f.address;
  if (!where.launch) return r;
  const Program& p = *where.launch->program;
  r.kernel = p.ptx->name;
  std::copy_n(where.cta, 3, r.cta);
  r.warp = where.warp;
  if (!where.inst || !where.inst->ptx) return r;
  r.instruction = where.inst->ptx->text();
  r.ptx_line = where.inst->ptx->line;
  r.places = places_of(p, *where.inst);
  return r;
}

}  // namespace

Where::Where(const Launch& l, uint64_t cta_index, uint32_t warp_index, const Inst* in)
    : launch(&l), warp(static_cast<int>(warp_index)), inst(in) {
  unravel(cta_index, l.grid, cta);
}

Where::Where(const Warp* w, const Inst* in) {
  if (w) *this = Where(*w->cta->cluster->launch, w->cta->linear, w->index, in);
}

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

void Machine::record(const Fault& f, const Where& where, std::vector<std::string> table) {
  if (report.present) return;
  report = make_report(f, where);
  report.table = std::move(table);
  ++tally.ended;
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

static Where where_is(const Warp* w, const Inst* in) { return {w, in || !w ? in : &w->current()}; }

void Machine::perform(const std::function<void()>& operation) {
  FaultListener::current = this;
  at_ = {};
  try {
    operation();
  } catch (const Fault& f) {
    record(f, {});
  }
}

bool Machine::goes_on_after(const Fault& f) { return keep(f, where_is(at_.warp, at_.inst), false); }
bool Machine::goes_on_without(const Fault& f) {
  bool goes_on = keep(f, where_is(at_.warp, at_.inst), true);
  tally.left_out += goes_on;
  return goes_on;
}

// A kind at an instruction is looked into once: unrolled loops have many of one source line.
bool Machine::keep(const Fault& f, const Where& where, bool left_out) {
  const FaultKind& kind = *f.kind;
  auto it = kept_.find({&kind, where.inst});
  if (it == kept_.end() || !where.inst) {
    Report r = make_report(f, where);
    size_t index = kIgnored;
    if (!settings.reports.ignores(kind, r.places)) {
      if (settings.reports.stops(kind)) return false;
      r.went_on = true, r.left_out = left_out, r.count = 0;
      index = add_report(std::move(r));
    }
    it = kept_.insert_or_assign({&kind, where.inst}, index).first;
  }
  if (it->second == kIgnored) {
    ++tally.ignored;
    return true;
  }
  ++went_on[it->second].count;
  ++tally.reports[static_cast<size_t>(kind.severity)];
  return true;
}

// Its index among those of its place.
size_t Machine::add_report(Report r) {
  for (size_t i = 0; i < went_on.size(); ++i)
    if (r.same_place(went_on[i])) return went_on[i].count += r.count, i;
  print(r);
  ++tally.places;
  went_on.push_back(std::move(r));
  return went_on.size() - 1;
}

// Shards do not print: what they have to say comes in their order.
void Machine::take_reports(const Machine& shard) {
  for (const Report& r : shard.went_on) add_report(r);
  for (size_t i = 0; i < std::size(tally.reports); ++i) tally.reports[i] += shard.tally.reports[i];
  tally.ignored += shard.tally.ignored, tally.left_out += shard.tally.left_out;
  if (!shard.failed() || failed()) return;
  report = shard.report;
  ++tally.ended;
  print(report);
}

}  // namespace l4k::emu
