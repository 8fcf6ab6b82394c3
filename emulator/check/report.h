// Faults of a program, and the report of the first.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace l4k::emu {

// Thrown by an instruction; the machine adds where it happened and makes a Report of it.
struct Fault {
  std::string kind;  // stable name, see docs/emulator.md
  std::string message;
  int lane = -1;
  bool has_address = false;
  uint64_t address = 0;
};

[[noreturn]] inline void fault(const char* kind, std::string message, int lane = -1) {
  throw Fault{kind, std::move(message), lane, false, 0};
}
[[noreturn]] inline void fault_at(const char* kind, std::string message, int lane,
                                  uint64_t address) {
  throw Fault{kind, std::move(message), lane, true, address};
}

struct Report {
  bool present = false;
  std::string kind, message, kernel, instruction, file;
  std::vector<std::string> inlined_at;  // file:line of the callers, up to the kernel
  int ptx_line = 0, line = 0;
  uint32_t cta[3] = {0, 0, 0};
  int warp = -1, lane = -1;
  bool has_address = false;
  uint64_t address = 0;
  std::vector<std::string> table;  // deadlock: who waits for what
  std::string text() const;
};

std::string hex(uint64_t v);
// Demangled, and short: CUTLASS's names run to kilobytes.
std::string readable(const std::string& mangled);

}  // namespace l4k::emu
