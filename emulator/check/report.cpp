#include "check/report.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>

namespace l4k::emu {

std::string readable(const std::string& mangled) {
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

std::string hex(uint64_t v) {
  char s[24];
  std::snprintf(s, sizeof s, "0x%llx", static_cast<unsigned long long>(v));
  return s;
}

std::string Report::text() const {
  if (!present) return "no report";
  std::string s = title();
  if (!kernel.empty()) s += "\n  kernel  " + readable(kernel);
  for (const SourcePlace& p : places)
    s += (&p == &places[0] ? "\n  source  " : "\n  inlined at ") + p.text();
  if (ptx_line) s += "\n  PTX     line " + std::to_string(ptx_line) + ": " + instruction;
  if (warp >= 0) {
    s += "\n  where   CTA (" + std::to_string(cta[0]) + ", " + std::to_string(cta[1]) + ", " +
         std::to_string(cta[2]) + "), warp " + std::to_string(warp);
    if (lane >= 0) s += ", lane " + std::to_string(lane);
  }
  if (has_address) s += "\n  address " + hex(address);
  for (const auto& row : table) s += "\n  " + row;
  if (!went_on && kind->severity == Severity::error) return s;
  static constexpr const char* kMeanings[] = {
      "\n  benign  the value is not used, or is the same either way",
      "\n  rule    breaks the documented rules, and works on today's hardware",
      "\n  error   wrong on hardware"};
  s += kMeanings[static_cast<size_t>(kind->severity)];
  if (went_on) s += left_out ? "; goes on without the instruction" : "; goes on";
  return s;
}

bool Report::same_place(const Report& other) const {
  if (kind != other.kind || places != other.places) return false;
  return !places.empty() || (kernel == other.kernel && ptx_line == other.ptx_line);
}

std::string ReportTally::text() const {
  std::string list;
  for (size_t i = std::size(reports); i-- > 0;)
    if (reports[i])
      list += (list.empty() ? "" : ", ") + std::to_string(reports[i]) + " " + kSeverityNames[i];
  if (list.empty() && !ignored) return "";
  std::string s = "the run went on after reports";
  if (places)
    s += " at " + std::to_string(places) + (places == 1 ? " place (" : " places (") + list + ")";
  if (ignored)
    s += std::string(places ? " and" : "") + " that were ignored (" + std::to_string(ignored) + ")";
  return s;
}

}  // namespace l4k::emu
