#include "ptx/parser.h"

#include <cstring>

#include "ptx/special.h"

namespace l4k::emu {
namespace {

uint32_t type_bits(std::string_view t) {
  if (t == ".pred") return 1;
  size_t i = t.size();
  while (i > 1 && t[i - 1] >= '0' && t[i - 1] <= '9') --i;
  if (i == t.size() || i < 2) return 0;
  std::string_view head = t.substr(1, i - 1);
  if (head != "b" && head != "u" && head != "s" && head != "f") return 0;
  int bits = std::atoi(std::string(t.substr(i)).c_str());
  return bits == 8 || bits == 16 || bits == 32 || bits == 64 || bits == 128 ? uint32_t(bits) : 0;
}

uint64_t round_up(uint64_t v, uint64_t to) { return (v + to - 1) / to * to; }

}  // namespace

std::string PtxInstruction::text() const {
  std::string s = opcode;
  for (const auto& m : mods) s += "." + m;
  return s;
}

bool PtxInstruction::has(const char* mod) const {
  for (const auto& m : mods)
    if (m == mod) return true;
  return false;
}

const Variable* PtxModule::find_variable(const std::string& n) const {
  for (const auto& v : variables)
    if (v->name == n) return v.get();
  return nullptr;
}

std::unique_ptr<PtxModule> parse_ptx(const std::string& text) { return PtxParser(text).parse(); }

std::unique_ptr<PtxModule> PtxParser::parse() {
  while (lex_.peek().kind != Token::Kind::end) module_statement();
  if (module_->version.empty()) lex_.fail("no .version: this is not PTX");
  return std::move(module_);
}

void PtxParser::skip_section() {
  while (!lex_.peek().is("{")) {
    if (lex_.peek().kind == Token::Kind::end) lex_.fail(".section without a body");
    lex_.next();
  }
  int depth = 0;
  do {
    if (lex_.peek().kind == Token::Kind::end) lex_.fail(".section without end");
    depth += lex_.peek().is("{") - lex_.peek().is("}");
    lex_.next();
  } while (depth);
}

void PtxParser::file_directive() {
  int index = static_cast<int>(lex_.next().value);
  if (lex_.peek().kind != Token::Kind::string) lex_.fail(".file needs a quoted name");
  module_->files[index] = std::string(lex_.next().text);
  while (lex_.accept(",")) lex_.next();
}

void PtxParser::module_statement() {
  if (lex_.accept(".version")) {
    module_->version = std::string(lex_.next().text);
  } else if (lex_.accept(".target")) {
    module_->target = std::string(lex_.next().text);
    while (lex_.accept(",")) lex_.next();
  } else if (lex_.accept(".address_size")) {
    if (lex_.next().value != 64) lex_.fail("only 64-bit addresses are supported");
  } else if (lex_.accept(".file")) {
    file_directive();
  } else if (lex_.accept(".section")) {
    skip_section();
  } else if (lex_.accept(".pragma") || lex_.accept(".alias")) {
    while (!lex_.accept(";")) {
      if (lex_.next().kind == Token::Kind::end) lex_.fail("directive without ';'");
    }
  } else if (!lex_.accept(";")) {
    linkage();
  }
}

void PtxParser::linkage() {
  bool external = false;
  for (;;) {
    if (lex_.accept(".extern")) external = true;
    else if (!lex_.accept(".visible") && !lex_.accept(".weak") && !lex_.accept(".common")) break;
  }
  Space space = Space::none;
  if (lex_.accept(".entry")) return function(true);
  if (lex_.accept(".func")) return function(false);
  if (lex_.accept(".global")) space = Space::global;
  else if (lex_.accept(".const")) space = Space::constant;
  else if (lex_.accept(".shared") || lex_.accept(".shared::cta")) space = Space::shared;
  else lex_.fail("unknown directive '" + std::string(lex_.peek().text) + "'");
  do {
    module_->variables.push_back(variable(space, external));
  } while (lex_.accept(","));
  lex_.expect(";");
}

std::string PtxParser::name() {
  if (lex_.peek().kind != Token::Kind::word)
    lex_.fail("expected a name, got '" + std::string(lex_.peek().text) + "'");
  return std::string(lex_.next().text);
}

int64_t PtxParser::signed_integer() {
  bool negative = lex_.accept("-");
  if (lex_.peek().kind != Token::Kind::integer)
    lex_.fail("expected an integer, got '" + std::string(lex_.peek().text) + "'");
  auto v = static_cast<int64_t>(lex_.next().value);
  return negative ? -v : v;
}

std::unique_ptr<Variable> PtxParser::variable(Space space, bool external) {
  auto v = std::make_unique<Variable>();
  v->space = space;
  v->external = external;
  uint32_t bits = 0, lanes = 1;
  bool is_float = false;
  while (lex_.peek().kind == Token::Kind::dotted) {
    Token t = lex_.next();
    if (t.is(".align")) v->align = static_cast<uint32_t>(signed_integer());
    else if (t.is(".v2")) lanes = 2;
    else if (t.is(".v4")) lanes = 4;
    else if (t.is(".attribute")) {
      lex_.expect("(");
      while (!lex_.accept(")")) lex_.next();
    } else if (type_bits(t.text) >= 8) bits = type_bits(t.text), is_float = t.text[1] == 'f';
    else if (!t.is(".ptr") && !t.is(".global") && !t.is(".shared") && !t.is(".const") &&
             !t.is(".local"))
      lex_.fail("unexpected '" + std::string(t.text) + "' in a declaration");
  }
  if (!bits) lex_.fail("a declaration without a type");
  if (!v->align || (v->align & (v->align - 1)) || v->align > 65536)
    lex_.fail("alignment " + std::to_string(v->align) + " is not a power of two");
  v->name = name();
  uint32_t element = bits / 8;
  v->align = std::max(v->align, element * lanes);
  v->bytes = uint64_t{element} * lanes;
  while (lex_.accept("[")) {
    uint64_t n = 0;
    if (!lex_.peek().is("]")) n = static_cast<uint64_t>(signed_integer());
    lex_.expect("]");
    if (n > (uint64_t{1} << 36)) lex_.fail("array of " + std::to_string(n) + " elements");
    v->bytes *= n;
  }
  if (lex_.accept("=")) initialiser(v.get(), element, is_float);
  if (v->init.size() > v->bytes) {
    if (v->bytes) lex_.fail("more initialisers than elements of '" + v->name + "'");
    v->bytes = v->init.size();
  }
  return v;
}

void PtxParser::initialiser(Variable* v, uint32_t bytes, bool is_float) {
  if (lex_.accept("{")) {
    if (++depth_ > 64) lex_.fail("initialiser nested more than 64 deep");
    if (lex_.accept("}")) return;
    do initialiser(v, bytes, is_float);
    while (lex_.accept(","));
    lex_.expect("}");
    --depth_;
    return;
  }
  uint64_t value = 0;
  Token t = lex_.peek();
  if (t.kind == Token::Kind::word) {
    bool generic = t.is("generic");
    lex_.next();
    Variable::Reference ref{v->init.size(), std::string(t.text), 0};
    if (generic) {
      lex_.expect("(");
      ref.symbol = name();
      lex_.expect(")");
    }
    if (lex_.accept("+")) ref.addend = signed_integer();
    if (bytes != 8) lex_.fail("an address in an initialiser needs a 64-bit element");
    v->references.push_back(ref);
  } else if (t.kind == Token::Kind::f32 || t.kind == Token::Kind::f64) {
    value = lex_.next().value;
    if (t.kind == Token::Kind::f64 && bytes == 4 && is_float) {
      double d;
      std::memcpy(&d, &value, 8);
      auto f = static_cast<float>(d);
      value = 0;
      std::memcpy(&value, &f, 4);
    }
  } else {
    value = static_cast<uint64_t>(signed_integer());
  }
  for (uint32_t i = 0; i < bytes; ++i)
    v->init.push_back(i < 8 ? static_cast<uint8_t>(value >> (8 * i)) : 0);
}

// Offsets of parameters and local variables; shared memory is laid out when modules are loaded.
void PtxParser::place(Variable* v) {
  uint64_t* size = v->space == Space::local ? &f_->local_bytes : &f_->param_bytes;
  if (v->space != Space::local && v->space != Space::param) return;
  v->address = round_up(*size, v->align);
  *size = v->address + v->bytes;
}

void PtxParser::formals(std::vector<Variable*>* out, bool kernel) {
  if (!lex_.accept("(")) return;
  if (lex_.accept(")")) return;
  do {
    if (lex_.accept(".reg")) lex_.fail("parameters in registers are not supported");
    lex_.expect(".param");
    auto v = variable(Space::param, false);
    v->kernel_param = kernel;
    place(v.get());
    scopes_[0].variables[v->name] = v.get();
    out->push_back(v.get());
    f_->variables.push_back(std::move(v));
  } while (lex_.accept(","));
  lex_.expect(")");
}

void PtxParser::triple(uint32_t (&out)[3]) {
  out[0] = out[1] = out[2] = 1;
  for (int i = 0; i < 3; ++i) {
    out[i] = static_cast<uint32_t>(signed_integer());
    if (!lex_.accept(",")) break;
  }
}

void PtxParser::function(bool entry) {
  auto owned = std::make_unique<PtxFunction>();
  f_ = owned.get();
  f_->entry = entry;
  f_->registers.push_back({"", 32, false});
  scopes_.assign(1, Scope{});
  scope_ = 0;
  for (uint32_t i = 1; i < kSpecialCount; ++i) {
    scopes_[0].registers[kSpecialNames[i]] = static_cast<int>(i);
    f_->registers.push_back({kSpecialNames[i], 32, false});
  }
  f_->registers.push_back({"_", 128, false});  // kSpecialCount: results that nobody reads
  if (!entry) formals(&f_->results, false);
  f_->name = name();
  formals(&f_->params, entry);
  for (;;) {
    uint32_t one[3];
    if (lex_.accept(".maxntid")) triple(f_->max_threads);
    else if (lex_.accept(".reqntid")) triple(f_->required_threads);
    else if (lex_.accept(".minnctapersm")) triple(one), f_->min_ctas = one[0];
    else if (lex_.accept(".maxnreg")) triple(one), f_->max_registers = one[0];
    else if (lex_.accept(".reqnctapercluster")) triple(f_->cluster);
    else if (lex_.accept(".maxclusterrank") || lex_.accept(".maxnctapersm")) triple(one);
    else if (lex_.accept(".pragma")) {
      lex_.next();
      lex_.accept(";");
    } else if (!lex_.accept(".explicitcluster") && !lex_.accept(".noreturn") &&
               !lex_.accept(".blocksareclusters"))
      break;
  }
  bool defined = lex_.peek().is("{");
  if (defined) {
    f_->defined = true;
    lex_.next();
    body();
    finish_function();
  } else {
    lex_.expect(";");
  }
  auto& slot = module_->functions[f_->name];
  if (slot && slot->defined && defined) lex_.fail("'" + f_->name + "' is defined twice");
  if (!slot || defined) slot = std::move(owned);
  f_ = nullptr;
}

void PtxParser::body() {
  int depth = 1;
  while (depth) {
    if (lex_.peek().kind == Token::Kind::end) lex_.fail("function without a closing brace");
    if (lex_.accept("{")) {
      Scope s;
      s.parent = scope_;
      scope_ = static_cast<int>(scopes_.size());
      scopes_.push_back(std::move(s));
      ++depth;
    } else if (lex_.accept("}")) {
      scope_ = scopes_[static_cast<size_t>(scope_)].parent;
      --depth;
    } else {
      statement();
    }
  }
}

void PtxParser::location_directive() {
  SourceLocation l;
  l.file = static_cast<int>(signed_integer());
  l.line = static_cast<int>(signed_integer());
  l.column = static_cast<int>(signed_integer());
  while (lex_.accept(",")) {
    if (lex_.accept("function_name")) {
      lex_.next();
      if (lex_.accept("+")) lex_.next();
      continue;
    }
    std::string word = name();
    if (word != "inlined_at") lex_.fail("unknown .loc attribute '" + word + "'");
    l.outer_file = static_cast<int>(signed_integer());
    l.outer_line = static_cast<int>(signed_integer());
    l.outer_column = static_cast<int>(signed_integer());
  }
  location_ = static_cast<int>(module_->locations.size());
  module_->locations.push_back(l);
}

void PtxParser::register_directive() {
  Token t = lex_.next();
  uint32_t bits = type_bits(t.text);
  if (!bits) lex_.fail("unknown register type '" + std::string(t.text) + "'");
  bool is_float = t.text[1] == 'f';
  Scope& s = scopes_[static_cast<size_t>(scope_)];
  do {
    std::string n = name();
    int base = static_cast<int>(f_->registers.size());
    if (lex_.accept("<")) {
      int64_t count = signed_integer();
      lex_.expect(">");
      if (count < 0 || count > 1000000) lex_.fail("impossible register count");
      s.ranges.push_back({n, base, static_cast<int>(count)});
      for (int64_t i = 0; i < count; ++i)
        f_->registers.push_back({n + std::to_string(i), bits, is_float});
    } else {
      s.registers[n] = base;
      f_->registers.push_back({n, bits, is_float});
    }
  } while (lex_.accept(","));
  lex_.expect(";");
}

void PtxParser::branch_targets(const std::string& label) {
  auto& list = f_->branch_targets[label];
  do list.push_back(name());
  while (lex_.accept(","));
  lex_.expect(";");
}

void PtxParser::statement() {
  const Token& t = lex_.peek();
  if (t.kind == Token::Kind::word) {
    // A label is a word followed by ':'; an opcode is followed by anything else.
    std::string word(t.text);
    Lexer saved = lex_;
    lex_.next();
    if (lex_.accept(":")) {
      if (lex_.accept(".branchtargets")) return branch_targets(word);
      if (lex_.accept(".callprototype") || lex_.accept(".calltargets")) {
        while (!lex_.accept(";"))
          if (lex_.next().kind == Token::Kind::end) lex_.fail("directive without ';'");
        return;
      }
      auto& labels = scopes_[static_cast<size_t>(scope_)].labels;
      if (!labels.emplace(word, static_cast<int>(f_->code.size())).second)
        lex_.fail("label '" + word + "' is defined twice");
      return;
    }
    lex_ = saved;
    return instruction();
  }
  if (t.is("@")) return instruction();
  if (lex_.accept(";")) return;
  if (lex_.accept(".loc")) return location_directive();
  if (lex_.accept(".file")) return file_directive();
  if (lex_.accept(".reg")) return register_directive();
  if (lex_.accept(".pragma")) {
    lex_.next();
    lex_.expect(";");
    return;
  }
  Space space;
  if (lex_.accept(".shared") || lex_.accept(".shared::cta")) space = Space::shared;
  else if (lex_.accept(".local")) space = Space::local;
  else if (lex_.accept(".param")) space = Space::param;
  else if (lex_.accept(".global")) space = Space::global;
  else if (lex_.accept(".const")) space = Space::constant;
  else lex_.fail("unexpected '" + std::string(t.text) + "'");
  do {
    auto v = variable(space, false);
    place(v.get());
    scopes_[static_cast<size_t>(scope_)].variables[v->name] = v.get();
    auto& owner =
        space == Space::global || space == Space::constant ? module_->variables : f_->variables;
    owner.push_back(std::move(v));
  } while (lex_.accept(","));
  lex_.expect(";");
}

}  // namespace l4k::emu
