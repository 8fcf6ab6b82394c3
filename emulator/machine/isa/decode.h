// Turns one parsed instruction into an executable record. Decoders take the modifiers they know;
// what is left over is "not implemented" and reported when (and only when) it is executed.
#pragma once

#include <optional>
#include <string>

#include "machine/core/program.h"

namespace l4k::emu {

struct NotImplemented {
  std::string what;
};

enum class Kind : uint8_t { bits, uint, sint, real, bf16, packed_f16, packed_bf16, pred };
struct Type {
  Kind kind = Kind::bits;
  uint32_t bits = 0;
  std::string name;
  bool is_signed() const { return kind == Kind::sint; }
  bool is_bf16() const { return kind == Kind::bf16 || kind == Kind::packed_bf16; }
  bool is_packed() const { return kind == Kind::packed_f16 || kind == Kind::packed_bf16; }
  bool is_float() const { return kind == Kind::real || is_bf16() || is_packed(); }
};

class Decoder {
 public:
  Decoder(Program* p, Image* image, const PtxInstruction* in, Inst* out)
      : program(p), image(image), in(in), out(out), left_(in->mods) {}

  Program* program;
  Image* image;
  const PtxInstruction* in;
  Inst* out;

  // Modifiers.
  bool take(const char* mod);
  // The first of the space-separated names that is present, as an index; -1 if none.
  int take_one(const char* names);
  Type take_type();  // the next modifier that is a type
  std::optional<Type> try_type();
  Type peek_type() const;  // the next one, without taking it; none: of no bits
  void finish();           // everything must have been taken
  [[noreturn]] void unsupported(const std::string& what = "") const;

  // Operands. Out-of-range indices are errors of the module.
  const PtxOperand& operand(size_t i) const;
  size_t operands() const { return in->operands.size(); }
  Reg source(const PtxOperand& o, uint32_t bits, bool is_float = false);
  // Also `_`: a scratch register. bits 0: any width.
  Reg target(const PtxOperand& o, uint32_t bits);
  uint32_t bits_of(const PtxOperand& o) const;  // of a register; 0 for literals
  void add_source(size_t i, uint32_t bits, bool is_float = false) {
    out->s[out->sources++] = source(operand(i), bits, is_float);
  }
  void add_target(size_t i, uint32_t bits) { out->d[out->targets++] = target(operand(i), bits); }
  Address address(const PtxOperand& o, Space space);
  // The same into s[sources++], base_bytes, imm and bias.
  void add_address(size_t i, Space space);
  // The same into `at`.
  void add_at(size_t i, Space space) { out->at.push_back(address(operand(i), space)); }
  // A predicate that may be negated; whether it is.
  bool add_predicate(size_t i);
  void add_list(const PtxOperand& o, uint32_t bits, ListUse use, bool is_float = false);
  uint64_t literal(size_t i) const;  // an integer operand that must be constant
  Reg constant(const void* lane_value, uint32_t bytes);

 private:
  void check_width(const PtxOperand& o, uint32_t bits) const;  // 0: any
  std::vector<std::string> left_;
};

}  // namespace l4k::emu
