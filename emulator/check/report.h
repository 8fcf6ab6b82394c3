// Faults of a program, and the reports that are made of them.
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <vector>

#include "check/kinds.h"

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
  std::bitset<kFaultKindCount> ignored;
  bool stops(const FaultKind& k) const { return k.final || (!never_stops && k.severity >= stop); }
  bool ignores(const FaultKind& k) const { return ignored[static_cast<size_t>(&k - kFaultKinds)]; }
  // error, rule, benign, never; false for anything else.
  bool set_stop(const std::string& value);
  // A kind, a severity (all its kinds), or `none`, which forgets those before. What is wrong, or "".
  std::string ignore(const std::string& name);
};

struct Report {
  bool present = false;
  std::string kind, message, kernel, instruction, file;
  Severity severity = Severity::error;
  bool went_on = false, left_out = false;  // the run went on; without the instruction
  uint64_t count = 1;                      // of the same kind at the same place
  std::vector<std::string> inlined_at;     // file:line of the callers, up to the kernel
  int ptx_line = 0, line = 0;
  uint32_t cta[3] = {0, 0, 0};
  int warp = -1, lane = -1;
  bool has_address = false;
  uint64_t address = 0;
  std::vector<std::string> table;  // deadlock: who waits for what
  std::string text() const;
};

std::string hex(uint64_t v);

}  // namespace l4k::emu
