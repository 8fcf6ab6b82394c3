// Faults of a program, and the reports that are made of them.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "check/suppression.h"

namespace l4k::emu {

// What an instruction did wrong; the machine adds where it happened and makes a Report of it.
struct Fault {
  KindName kind;
  std::string message;
  int lane = -1;
  bool has_address = false;
  uint64_t address = 0;
};

// The machine that runs on this thread.
class FaultListener {
 public:
  // Keeps the report and returns true, or returns false: the run ends at this fault.
  virtual bool goes_on_after(const Fault& f) = 0;
  static thread_local FaultListener* current;

 protected:
  ~FaultListener() = default;
};

// The instruction cannot be performed: where the run goes on, it is left out.
[[noreturn]] inline void fault(KindName kind, std::string message, int lane = -1) {
  throw Fault{kind, std::move(message), lane, false, 0};
}
[[noreturn]] inline void fault_at(KindName kind, std::string message, int lane, uint64_t address) {
  throw Fault{kind, std::move(message), lane, true, address};
}
// The instruction is wrong and can be performed: returns where the run goes on.
void complain(const Fault& f);
inline void complain(KindName kind, std::string message, int lane = -1) {
  complain(Fault{kind, std::move(message), lane, false, 0});
}
inline void complain_at(KindName kind, std::string message, int lane, uint64_t address) {
  complain(Fault{kind, std::move(message), lane, true, address});
}

// Which reports end the run, and which are not made.
struct ReportPolicy {
  Severity stop = Severity::error;  // the least severity that ends it
  bool never_stops = false;         // but for what is `final`
  KindSet ignored;
  std::vector<Suppression> suppressions;
  bool stops(const FaultKind& k) const { return k.final || (!never_stops && k.severity >= stop); }
  bool ignores(const FaultKind& k, const std::vector<SourcePlace>& places) const {
    return ignored[index_of(k)] || (!k.final && suppressed(k, places, suppressions));
  }
  // Of a setting: error, rule, benign, never; false for anything else.
  bool set_stop(const std::string& value);
};

struct Report {
  bool present = false;
  const FaultKind* kind = nullptr;
  std::string message, kernel, instruction;
  std::vector<SourcePlace> places;         // in the source; the callers that it is inlined into
  bool went_on = false, left_out = false;  // the run went on; without the instruction
  uint64_t count = 1;                      // of the same kind at the same place
  int ptx_line = 0;
  uint32_t cta[3] = {0, 0, 0};
  int warp = -1, lane = -1;
  bool has_address = false;
  uint64_t address = 0;
  std::vector<std::string> table;  // deadlock: who waits for what
  std::string text() const;
  std::string title() const { return std::string(kind->name) + ": " + message; }
  bool same_place(const Report& other) const;
};

// How often the run went on, and how often it ended, since the process began.
struct ReportTally {
  uint64_t reports[std::size(kSeverityNames)] = {}, places = 0, ignored = 0, left_out = 0,
           ended = 0;
  std::string text() const;  // "" when it never did
};

std::string hex(uint64_t v);
// Demangled, and short: CUTLASS's names run to kilobytes.
std::string readable(const std::string& mangled);

}  // namespace l4k::emu
