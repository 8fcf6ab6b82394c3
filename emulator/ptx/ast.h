// What the PTX parser produces: modules, functions, instructions with resolved names.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace l4k::emu {

// A malformed module, with its line in the PTX text (0: before the first line).
struct PtxError : std::runtime_error {
  PtxError(int line, const std::string& what)
      : std::runtime_error("PTX line " + std::to_string(line) + ": " + what), line(line) {}
  int line;
};

enum class Space : uint8_t { none, reg, param, local, shared, global, constant };

struct Variable {
  std::string name;
  Space space = Space::none;
  uint32_t align = 1;
  uint64_t bytes = 0;
  bool external = false;  // extern .shared (dynamic) or a symbol of another module
  bool kernel_param = false;
  std::vector<uint8_t> init;
  struct Reference {  // an address stored by an initialiser
    uint64_t offset;
    std::string symbol;
    int64_t addend;
  };
  std::vector<Reference> references;
  // Offset in the CTA's shared memory, the frame's local or parameter memory, or the kernel's
  // parameter block; for module-level global and constant variables the host address.
  uint64_t address = 0;
};

struct Register {
  std::string name;
  uint32_t bits;  // 1 for predicates
  bool is_float;
};

struct PtxOperand {
  // group: {a, b}; list: (a, b); pair: a|b; address: [base + value] or [base + value, {coords}]
  enum class Kind : uint8_t { reg, integer, f32, f64, symbol, group, list, pair, address, sink };
  Kind kind = Kind::sink;
  bool negated = false;
  int reg = -1;
  uint64_t value = 0;  // literal bits, or an address's offset
  std::string name;    // symbol: variable, function or label
  const Variable* variable = nullptr;
  int target = -1;                // symbol that is a label: instruction index
  std::vector<PtxOperand> parts;  // address: parts[0] is the base, parts[1] a group if present
};

struct SourceLocation {
  int file = 0, line = 0, column = 0;
  int outer_file = 0, outer_line = 0, outer_column = 0;  // inlined_at; 0 when not inlined
};

struct PtxInstruction {
  std::string opcode;             // "cp", "wgmma", "add"
  std::vector<std::string> mods;  // "async", "bulk", "f32"
  int predicate = -1;
  bool predicate_negated = false;
  std::vector<PtxOperand> operands;
  int line = 0;
  int location = 0;  // index into PtxModule::locations
  int scope = 0;
  std::string text() const;  // opcode with modifiers
  bool has(const char* mod) const;
};

struct PtxFunction {
  std::string name;
  bool entry = false;
  bool defined = false;
  std::vector<Register> registers;  // index 0 is unused
  std::vector<PtxInstruction> code;
  std::vector<std::unique_ptr<Variable>> variables;
  std::vector<Variable*> params, results;
  uint64_t param_bytes = 0;  // entry: kernel parameter block; else frame parameter memory
  uint64_t local_bytes = 0;
  uint32_t max_threads[3] = {0, 0, 0}, required_threads[3] = {0, 0, 0};
  uint32_t min_ctas = 0, max_registers = 0;
  uint32_t cluster[3] = {0, 0, 0};
  bool has_dynamic_shared = false;
  std::map<std::string, std::vector<std::string>> branch_targets;
};

struct PtxModule {
  std::string version, target;
  std::vector<std::unique_ptr<Variable>> variables;
  std::map<std::string, std::unique_ptr<PtxFunction>> functions;
  std::map<int, std::string> files;
  std::vector<SourceLocation> locations{SourceLocation{}};
  const Variable* find_variable(const std::string& name) const;
};

std::unique_ptr<PtxModule> parse_ptx(const std::string& text);

// The PTX texts of a fat binary. Throws PtxError for a malformed one and for compressed PTX.
struct FatBinaryImage {
  std::string ptx;
  int arch = 0;
};
std::vector<FatBinaryImage> read_fat_binary(const void* data);

}  // namespace l4k::emu
