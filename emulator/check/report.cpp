#include "check/report.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>

namespace l4k::emu {

// Demangled, and short: CUTLASS's names run to kilobytes.
static std::string readable(const std::string& mangled) {
  int status = 0;
  char* p = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string s = status == 0 ? p : mangled;
  std::free(p);
  if (s.size() > 160) s.replace(157, s.npos, "...");
  return s;
}

thread_local FaultListener* FaultListener::current = nullptr;

void complain(const Fault& f) {
  if (!FaultListener::current || !FaultListener::current->goes_on_after(f)) throw f;
}

bool ReportPolicy::set_stop(const std::string& value) {
  never_stops = value == "never";
  if (never_stops) return true;
  for (size_t i = 0; i < std::size(kSeverityNames); ++i) {
    if (value != kSeverityNames[i]) continue;
    stop = static_cast<Severity>(i);
    return true;
  }
  return false;
}

std::string ReportPolicy::ignore(const std::string& name) {
  if (name == "none") {
    ignored.reset();
    return "";
  }
  const FaultKind* one = find_fault_kind(name);
  if (one && one->final) return "no launch can go on after " + name;
  bool found = one != nullptr;
  std::string known;
  for (size_t i = 0; i < kFaultKindCount; ++i) {
    const FaultKind& k = kFaultKinds[i];
    bool named = &k == one || name == name_of(k.severity);
    found = found || named;
    if (named && !k.final) ignored.set(i);
    known += std::string(known.empty() ? "" : ", ") + k.name;
  }
  if (found) return "";
  return "no kind of report is called '" + name +
         "'; expected benign, rule, error, none or one of " + known;
}

std::string hex(uint64_t v) {
  char s[24];
  std::snprintf(s, sizeof s, "0x%llx", static_cast<unsigned long long>(v));
  return s;
}

std::string Report::text() const {
  if (!present) return "no report";
  std::string s = kind + ": " + message;
  if (!kernel.empty()) s += "\n  kernel  " + readable(kernel);
  if (!file.empty()) s += "\n  source  " + file + ":" + std::to_string(line);
  for (const auto& place : inlined_at) s += "\n  inlined at " + place;
  if (ptx_line) s += "\n  PTX     line " + std::to_string(ptx_line) + ": " + instruction;
  if (warp >= 0) {
    s += "\n  where   CTA (" + std::to_string(cta[0]) + ", " + std::to_string(cta[1]) + ", " +
         std::to_string(cta[2]) + "), warp " + std::to_string(warp);
    if (lane >= 0) s += ", lane " + std::to_string(lane);
  }
  if (has_address) s += "\n  address " + hex(address);
  for (const auto& row : table) s += "\n  " + row;
  if (went_on || severity != Severity::error) {
    static constexpr const char* kMeaning[] = {
        "\n  benign  the value is not used, or is the same either way",
        "\n  rule    breaks the documented rules, and works on today's hardware",
        "\n  error   wrong on hardware"};
    s += kMeaning[static_cast<size_t>(severity)];
    if (went_on) s += left_out ? "; goes on without the instruction" : "; goes on";
  }
  return s;
}

}  // namespace l4k::emu
