// The instruction half of the parser: operands, name lookup, labels.
#include "ptx/parser.h"
#include "ptx/special.h"

namespace l4k::emu {

int PtxParser::find_register(const std::string& n) const {
  size_t digits = n.size();
  while (digits && n[digits - 1] >= '0' && n[digits - 1] <= '9') --digits;
  bool numbered =
      digits < n.size() && n.size() - digits < 8 && (n[digits] != '0' || n.size() == digits + 1);
  int number = numbered ? std::stoi(n.substr(digits)) : 0;
  for (int s = scope_; s >= 0; s = scopes_[static_cast<size_t>(s)].parent) {
    const Scope& scope = scopes_[static_cast<size_t>(s)];
    if (auto it = scope.registers.find(n); it != scope.registers.end()) return it->second;
    if (!numbered) continue;
    for (const auto& r : scope.ranges)
      if (number < r.count && n.compare(0, digits, r.prefix) == 0) return r.base + number;
  }
  return -1;
}

const Variable* PtxParser::find_variable(const std::string& n) const {
  for (int s = scope_; s >= 0; s = scopes_[static_cast<size_t>(s)].parent) {
    const auto& v = scopes_[static_cast<size_t>(s)].variables;
    if (auto it = v.find(n); it != v.end()) return it->second;
  }
  return module_->find_variable(n);
}

PtxOperand PtxParser::word_operand() {
  PtxOperand o;
  std::string word = name();
  if (word == "_") return o;
  if (word == "WARP_SZ") {
    o.kind = PtxOperand::Kind::integer;
    o.value = 32;
    return o;
  }
  if (word[0] == '%' && lex_.peek().kind == Token::Kind::dotted && lex_.peek().glued)
    word += std::string(lex_.next().text);
  o.reg = find_register(word);
  if (o.reg > 0) {
    o.kind = PtxOperand::Kind::reg;
  } else {
    o.kind = PtxOperand::Kind::symbol;
    o.name = word;
    o.variable = find_variable(word);
    if (lex_.accept("+")) o.value = static_cast<uint64_t>(signed_integer());
  }
  return o;
}

PtxOperand PtxParser::address_operand() {
  PtxOperand o;
  o.kind = PtxOperand::Kind::address;
  o.parts.push_back(operand());
  PtxOperand& base = o.parts[0];
  o.value = base.kind == PtxOperand::Kind::symbol ? base.value : 0;
  base.value = base.kind == PtxOperand::Kind::symbol ? 0 : base.value;
  if (lex_.accept("+")) o.value += static_cast<uint64_t>(signed_integer());
  else if (lex_.peek().is("-")) o.value += static_cast<uint64_t>(signed_integer());
  if (lex_.accept(",")) o.parts.push_back(operand());
  lex_.expect("]");
  return o;
}

PtxOperand PtxParser::operand() {
  PtxOperand o;
  const Token t = lex_.peek();
  struct Depth {
    int* d;
    ~Depth() { --*d; }
  } guard{&depth_};
  if (++depth_ > 64) lex_.fail("operand nested more than 64 deep");
  if (lex_.accept("{") || lex_.accept("(")) {
    o.kind = t.is("{") ? PtxOperand::Kind::group : PtxOperand::Kind::list;
    const char* close = t.is("{") ? "}" : ")";
    if (lex_.accept(close)) return o;
    do o.parts.push_back(operand());
    while (lex_.accept(","));
    lex_.expect(close);
    return o;
  }
  if (lex_.accept("[")) return address_operand();
  if (lex_.accept("!")) {
    o = word_operand();
    o.negated = true;
    return o;
  }
  if (lex_.accept("-")) {
    o = operand();
    if (o.kind == PtxOperand::Kind::integer) o.value = 0 - o.value;
    else if (o.kind == PtxOperand::Kind::f64) o.value ^= uint64_t{1} << 63;
    else if (o.kind == PtxOperand::Kind::f32) o.value ^= 0x80000000u;
    else lex_.fail("'-' before something that is not a number");
    return o;
  }
  if (t.kind == Token::Kind::integer || t.kind == Token::Kind::f32 || t.kind == Token::Kind::f64) {
    o.kind = t.kind == Token::Kind::integer ? PtxOperand::Kind::integer
             : t.kind == Token::Kind::f32   ? PtxOperand::Kind::f32
                                            : PtxOperand::Kind::f64;
    o.value = lex_.next().value;
    return o;
  }
  if (t.kind != Token::Kind::word) lex_.fail("unexpected '" + std::string(t.text) + "'");
  o = word_operand();
  if (lex_.accept("|")) {
    PtxOperand pair;
    pair.kind = PtxOperand::Kind::pair;
    pair.parts.push_back(std::move(o));
    pair.parts.push_back(word_operand());
    return pair;
  }
  return o;
}

void PtxParser::instruction() {
  PtxInstruction in;
  in.line = lex_.peek().line;
  in.location = location_;
  in.scope = scope_;
  if (lex_.accept("@")) {
    in.predicate_negated = lex_.accept("!");
    std::string p = name();
    in.predicate = find_register(p);
    if (in.predicate <= 0 || f_->registers[static_cast<size_t>(in.predicate)].bits != 1)
      lex_.fail("'" + p + "' is not a predicate register");
  }
  in.opcode = name();
  while (lex_.peek().kind == Token::Kind::dotted) in.mods.emplace_back(lex_.next().text.substr(1));
  if (!lex_.peek().is(";")) {
    do in.operands.push_back(operand());
    while (lex_.accept(","));
  }
  lex_.expect(";");
  f_->code.push_back(std::move(in));
}

void PtxParser::resolve(PtxOperand* o, const PtxInstruction& in) {
  for (auto& part : o->parts) resolve(&part, in);
  if (o->kind != PtxOperand::Kind::symbol || o->variable) return;
  for (int s = in.scope; s >= 0; s = scopes_[static_cast<size_t>(s)].parent) {
    const auto& labels = scopes_[static_cast<size_t>(s)].labels;
    if (auto it = labels.find(o->name); it != labels.end()) {
      o->target = it->second;
      return;
    }
  }
}

// Labels may be used before they are defined, so symbols are resolved when the body is complete.
void PtxParser::finish_function() {
  for (auto& in : f_->code)
    for (auto& o : in.operands) resolve(&o, in);
  for (auto& [label, targets] : f_->branch_targets) {
    for (auto& t : targets) {
      bool found = false;
      for (const auto& s : scopes_)
        if (auto it = s.labels.find(t); it != s.labels.end()) {
          t = std::to_string(it->second);
          found = true;
          break;
        }
      if (!found) lex_.fail("branch target '" + t + "' does not exist");
    }
  }
}

}  // namespace l4k::emu
