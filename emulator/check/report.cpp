#include "check/report.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>

namespace l4k::emu {

std::string readable(const std::string& mangled) {
  int status = 0;
  char* p = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string s = status == 0 ? p : mangled;
  std::free(p);
  return s.size() > 160 ? s.substr(0, 157) + "..." : s;
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
  return s;
}

}  // namespace l4k::emu
