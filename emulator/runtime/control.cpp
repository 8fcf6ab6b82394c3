// The C interface of include/l4k_emulator.h, settings from text, counters as text.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "l4k_emulator.h"
#include "runtime/work.h"

namespace l4k::emu {
namespace {

bool parse_settings(const std::string& text, Settings* s, std::string* error) {
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.find(',', at), text.size()), eq = text.find('=', at);
    std::string key = text.substr(at, std::min(eq, end) - at);
    std::string value = eq < end ? text.substr(eq + 1, end - eq - 1) : "";
    at = end + 1;
    char* rest = nullptr;
    uint64_t number = std::strtoull(value.c_str(), &rest, 0);
    bool numeric = !value.empty() && !*rest;
    if (key == "mode" && value == "late") s->mode = Mode::late;
    else if (key == "mode" && value == "early") s->mode = Mode::early;
    else if (key == "mode" && value == "random") s->mode = Mode::random;
    else if (key == "seed" && numeric) s->seed = number;
    else if (key == "sms" && numeric && number) s->sms = static_cast<uint32_t>(number);
    else if (key == "threads" && numeric && number) s->threads = static_cast<uint32_t>(number);
    else if (key == "strict" && numeric) s->strict = number != 0;
    else if (key == "perturb" && numeric) s->perturb = number != 0;
    else if (key == "limit" && numeric) s->max_instructions = number;
    else if (key == "print" && numeric) s->print = number != 0;
    else if (key == "leaks" && numeric) s->leaks = number != 0;
    else if (key == "results") s->results = value;
    else if (key == "fp8" && value == "exact") s->fp8 = Fp8Accumulation::exact;
    else if (key == "fp8" && value == "hopper") s->fp8 = Fp8Accumulation::hopper;
    else if (key == "stop" && s->reports.set_stop(value)) continue;
    else if (key == "continue" && eq >= end) s->reports.never_stops = true;
    else if (key == "ignore" && value == "none") s->reports.ignored.reset();
    else if (key == "ignore") *error = add_kinds(value, &s->reports.ignored);
    else if (key == "suppress" && value.empty()) s->reports.suppressions.clear();
    else if (key == "suppress") *error = read_suppressions(value, &s->reports.suppressions);
    else {
      *error = "unknown setting '" + key + "=" + value + "'";
    }
    if (!error->empty()) return false;
  }
  return true;
}

const char* class_of(const std::string& opcode) {
  static constexpr struct {
    const char *name, *opcodes;
  } kClasses[] = {{"memory", " ld ldu st atom red cp prefetch prefetchu ldmatrix stmatrix "},
                  {"tensor", " wgmma mma "},
                  {"sync", " bar barrier mbarrier fence membar griddepcontrol setmaxnreg "},
                  {"warp", " shfl vote match redux elect activemask "},
                  {"control", " bra brx call ret exit nanosleep trap "}};
  for (const auto& c : kClasses)
    if (std::strstr(c.opcodes, (" " + opcode + " ").c_str())) return c.name;
  return "arithmetic";
}

void print_leaks() {
  const Machine& m = Machine::get();
  if (!m.settings.leaks) return;
  m.memory.for_each_live([](const Range& r) {
    if (!r.allocated() || r.owner == Owner::variable) return;
    std::fprintf(stderr, "l4k emulator: leak: %llu bytes at %s were never freed\n",
                 static_cast<unsigned long long>(r.bytes()), hex(r.begin).c_str());
  });
}

// One line of how often there were reports, then the counters: for whoever runs the program.
void write_results() {
  const Machine& m = Machine::get();
  if (m.settings.results.empty()) return;
  std::ofstream file(m.settings.results);
  for (size_t i = 0; i < std::size(kSeverityNames); ++i)
    file << kSeverityNames[i] << "=" << m.tally.reports[i] << " ";
  file << "ended=" << m.tally.ended << "\n" << l4k_emu_counters();
  if (!file.flush())
    std::fprintf(stderr, "l4k emulator: results: cannot write %s\n", m.settings.results.c_str());
}

}  // namespace

void Machine::configure_from_environment() {
  std::atexit(write_results);
  std::atexit(print_leaks);
  Settings s;
  s.print = true;
  std::string error;
  if (const char* text = std::getenv("L4K_EMU"); text && !parse_settings(text, &s, &error)) {
    std::fprintf(stderr, "L4K_EMU: %s\n", error.c_str());
    std::fflush(nullptr);
    std::_Exit(2);  // handlers of the exit need the machine, which there is not
  }
  configure(s);
}

std::vector<KernelCounters> Machine::counters() const {
  std::vector<KernelCounters> out;
  for (const auto& [name, k] : kernel_counters) {
    KernelCounters c = k;
    std::map<std::string, InstCounters> lines;
    const Program& p = *counted_programs.at(name);
    const auto tally = tallies_.find(&p);  // none: a report ended the run before its first warp
    for (size_t i = 0; tally != tallies_.end() && i < p.code.size(); ++i) {
      const InstCounters& n = tally->second[i];
      if (!n.issued && !n.bulk_bytes) continue;
      c.total += n;
      c.issued[class_of(p.code[i].ptx->opcode)] += n.issued;
      if (n.global_bytes || n.bulk_bytes || n.conflicts || n.flop || n.waits)
        lines[location(p, p.code[i])] += n;
    }
    c.lines.assign(lines.begin(), lines.end());
    out.push_back(std::move(c));
  }
  return out;
}

InstCounters* Machine::counters_of(const Program& p) {
  auto& t = tallies_[&p];
  if (t.size() != p.code.size()) t.assign(p.code.size(), {});  // or of a module that is gone
  return t.data();
}

void Machine::reset_counters() {
  for (auto& [p, tally] : tallies_) std::fill(tally.begin(), tally.end(), InstCounters{});
  kernel_counters.clear();
  counted_programs.clear();
}

}  // namespace l4k::emu

using namespace l4k::emu;

extern "C" {

void l4k_emu_configure(l4k_emu_mode mode, uint64_t seed, uint32_t sms) {
  Settings s = Machine::get().settings;
  s.mode = static_cast<Mode>(mode);
  s.seed = seed;
  s.sms = sms;
  Machine::get().configure(s);
}
int l4k_emu_configure_text(const char* text) {
  Settings s = Machine::get().settings;
  std::string error;
  if (!parse_settings(text, &s, &error)) {
    Registry::get().refusal = error;
    return -1;
  }
  Machine::get().configure(s);
  return 0;
}
uint32_t l4k_emu_epoch(void) { return Machine::get().epoch; }
void l4k_emu_reset(void) {
  Machine::get().reset();
  Machine::get().reset_counters();
  Registry::get().last = cudaSuccess;
  Registry::get().refusal.clear();
}
const char* l4k_emu_report(void) {
  static std::string text;
  text = Machine::get().failed() ? Machine::get().report.text() : "";
  return text.c_str();
}
const char* l4k_emu_report_kind(void) {
  return Machine::get().failed() ? Machine::get().report.kind->name : "";
}
size_t l4k_emu_report_count(void) { return Machine::get().reports().size(); }
const char* l4k_emu_report_at(size_t index) {
  static std::string text;
  auto all = Machine::get().reports();
  text = index < all.size() ? all[index]->text() : "";
  return text.c_str();
}
const char* l4k_emu_refusal(void) { return Registry::get().refusal.c_str(); }
const char* l4k_emu_counters(void) {
  static std::string text;
  text.clear();
  auto line = [](const InstCounters& c) {
    std::string s;
    auto item = [&](const char* name, uint64_t v) {
      if (v) s += std::string(" ") + name + "=" + std::to_string(v);
    };
    item("issued", c.issued), item("global_bytes", c.global_bytes), item("sectors", c.sectors);
    item("bulk_bytes", c.bulk_bytes), item("bank_conflicts", c.conflicts), item("flop", c.flop),
        item("waits", c.waits);
    return s + "\n";
  };
  for (const auto& k : Machine::get().counters()) {
    text += readable(k.kernel) + " launches=" + std::to_string(k.launches) +
            " distinct_read=" + std::to_string(k.distinct_read_bytes) +
            " distinct_written=" + std::to_string(k.distinct_written_bytes);
    for (const auto& [name, n] : k.issued) text += " issued_" + name + "=" + std::to_string(n);
    text += line(k.total);
    for (const auto& [where, c] : k.lines) text += "  " + where + line(c);
  }
  return text.c_str();
}
void l4k_emu_register_range(const void* p, size_t n) { Machine::get().memory.add_range(p, n); }
void l4k_emu_allocate_range(const void* p, size_t n, void* stream) {
  Lock lock(runtime_mutex());
  l4k_emu_register_range(p, n);
  submit(static_cast<cudaStream_t>(stream), AllocationWork{const_cast<void*>(p), n});
}
void l4k_emu_unregister_range(const void* p, size_t n) {
  l4k_emu_synchronize();
  Machine::get().memory.remove_range(p, n);
}
void l4k_emu_end_range(const void* p, size_t n, const char* name) {
  Machine::get().memory.end_range(p, n, Machine::get().next_launch(), name);
}
int l4k_emu_synchronize(void) {
  Lock lock(runtime_mutex());
  Streams::get().host_waits_for_all();
  return Machine::get().synchronize() ? 0 : -1;
}

}  // extern "C"
