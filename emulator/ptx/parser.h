// Recursive-descent parser of PTX. Register, variable and label names are scoped by { }: inline
// assembly that is expanded twice declares the same names twice.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "ptx/ast.h"
#include "ptx/lexer.h"

namespace l4k::emu {

class PtxParser {
 public:
  explicit PtxParser(const std::string& text) : lex_(text), module_(new PtxModule) {}
  std::unique_ptr<PtxModule> parse();

 private:
  struct Scope {
    int parent = -1;
    std::unordered_map<std::string, int> registers;
    struct Range {
      std::string prefix;
      int base, count;
    };
    std::vector<Range> ranges;
    std::unordered_map<std::string, const Variable*> variables;
    std::unordered_map<std::string, int> labels;
  };

  void module_statement();
  void skip_section();
  void file_directive();
  void linkage();
  void function(bool entry);
  void formals(std::vector<Variable*>* out, bool kernel);
  void body();
  void statement();
  void location_directive();
  void register_directive();
  void branch_targets(const std::string& label);
  void instruction();
  std::unique_ptr<Variable> variable(Space space, bool external);
  void initialiser(Variable* v, uint32_t element_bytes, bool is_float);
  void place(Variable* v);
  void triple(uint32_t (&out)[3]);
  PtxOperand operand();
  PtxOperand word_operand();
  PtxOperand address_operand();
  int64_t signed_integer();
  std::string name();
  int find_register(const std::string& name) const;
  const Variable* find_variable(const std::string& name) const;
  void resolve(PtxOperand* o, const PtxInstruction& in);
  void finish_function();

  Lexer lex_;
  std::unique_ptr<PtxModule> module_;
  PtxFunction* f_ = nullptr;
  std::vector<Scope> scopes_;
  int scope_ = -1;
  int location_ = 0, depth_ = 0;
};

}  // namespace l4k::emu
