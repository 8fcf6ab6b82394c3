// Runs PTX text on one warp, for tests of instructions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace l4k::emu {

inline constexpr const char* kHead = ".version 9.0\n.target sm_90a\n.address_size 64\n";

inline constexpr uint32_t kUnset = 0xeeeeeeee;  // a result that was not stored

extern int failures;
void expect(bool ok, const std::string& what);

// Runs `body` with 32 lanes: %a, %b, %c hold the lane's inputs (32 bits), %d is the result, %t0 the
// lane. `module`: what stands before the kernel. Returns the report's kind or the module's error.
std::string run(const std::string& body, const std::vector<uint32_t>& in,
                std::vector<uint32_t>* out, uint32_t lanes = 32, const std::string& module = "");

// The result of lane 0, and the report's kind.
void value(const std::string& body, const std::vector<uint32_t>& in, uint32_t want);
void report(const std::string& body, const std::string& kind, uint32_t lanes = 32);

// Calls the tests in all modes.
void in_all_modes(void (*tests)());

}  // namespace l4k::emu
