// Tokens of PTX text. A word keeps its leading dot (".b32") or percent sign ("%r1").
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace l4k::emu {

struct Token {
  enum class Kind : uint8_t { end, word, dotted, integer, f32, f64, string, punctuation };
  Kind kind = Kind::end;
  std::string_view text;
  uint64_t value = 0;  // literals: bits
  int line = 1;
  bool glued = false;  // no white space before it
  bool is(std::string_view s) const { return text == s && kind != Kind::string; }
};

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) { advance(); }
  const Token& peek() const { return token_; }
  Token next() {
    Token t = token_;
    advance();
    return t;
  }
  bool accept(std::string_view s) {
    if (!token_.is(s)) return false;
    advance();
    return true;
  }
  void expect(std::string_view s);
  [[noreturn]] void fail(const std::string& what) const;

 private:
  void advance();
  void number();
  std::string_view text_;
  size_t at_ = 0;
  int line_ = 1;
  Token token_;
};

}  // namespace l4k::emu
