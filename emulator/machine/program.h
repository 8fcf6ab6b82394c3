// Predecoded code: what the interpreter executes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "ptx/ast.h"
#include "ptx/special.h"

namespace l4k::emu {

struct Warp;
struct Inst;
struct Program;
using Handler = void (*)(Warp&, const Inst&);

// A register (32 lanes side by side) or, with reg 0, a literal in the program's constant pool.
struct Src {
  uint32_t reg = 0, offset = 0;
};

// Where an address operand's base comes from besides a register.
enum class Bias : uint8_t { none, dynamic_shared, local_frame, frame_params };

struct Address {  // [base + offset]
  Src base;
  uint32_t bytes = 8;  // of the base register
  int64_t offset = 0;
  Bias bias = Bias::none;
};

struct Inst {
  Handler run = nullptr;
  Src predicate;
  bool predicate_negated = false;
  bool checks_itself = false;  // the handler looks at register states (moves, wgmma, calls)
  bool propagates = false;     // pure arithmetic: an undefined source makes an undefined result
  uint8_t list_role = 0;       // 1: list is read, 2: list is written
  uint8_t sources = 0, targets = 0;
  Bias bias = Bias::none;
  Src s[4], d[2];
  int64_t imm = 0;               // address offset, or whatever the handler needs
  uint32_t a = 0, b = 0, c = 0;  // modifiers, meaning is the handler's
  uint32_t target = 0;           // branch
  std::vector<Src> list;         // vector operands
  std::vector<Address> at;  // instructions with several addresses; the handler checks their bases
  const Program* callee = nullptr;
  const PtxInstruction* ptx = nullptr;
  std::string note;  // not implemented: what
};

struct InstCounters {
  uint64_t issued = 0, global_bytes = 0, sectors = 0, bulk_bytes = 0, conflicts = 0, flop = 0,
           waits = 0;
};

struct Program {
  const PtxFunction* ptx = nullptr;
  const PtxModule* module = nullptr;
  std::vector<Inst> code;
  std::vector<uint32_t> offset;  // register -> byte offset in the register file
  uint32_t register_bytes = 0;
  std::vector<uint8_t> pool;  // literals, each repeated for 32 lanes
  uint32_t static_shared_end = 1024;
  uint32_t dynamic_align = 16;
  bool launches_dependents = false, waits_for_dependency = false;
  mutable std::vector<InstCounters> counters;
};

// A loaded fat binary: programs by function name, device variables with their memory.
struct Image {
  std::unique_ptr<PtxModule> module;
  std::unordered_map<std::string, std::unique_ptr<Program>> programs;
  Program* find(const std::string& name) const {
    auto it = programs.find(name);
    return it == programs.end() ? nullptr : it->second.get();
  }
};
// Throws PtxError. Memory of device variables is registered with the machine.
std::unique_ptr<Image> load_image(const std::string& ptx_text);

}  // namespace l4k::emu
