#include "ptx/lexer.h"

#include <bit>
#include <cstdlib>

#include "ptx/ast.h"

namespace l4k::emu {
namespace {

bool word_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$' || c == '%';
}
bool digit(char c) { return c >= '0' && c <= '9'; }
bool word_char(char c) { return word_start(c) || digit(c); }

}  // namespace

void Lexer::fail(const std::string& what) const { throw PtxError(token_.line, what); }

void Lexer::expect(std::string_view s) {
  if (accept(s)) return;
  fail("expected '" + std::string(s) + "', got '" +
       (token_.kind == Token::Kind::end ? "end of text" : std::string(token_.text)) + "'");
}

void Lexer::number() {
  size_t start = at_;
  auto hex_literal = [&](Token::Kind kind, size_t digits) {
    uint64_t v = 0;
    size_t i = at_ + 2, stop = i + digits;
    for (; i < stop && i < text_.size() && std::isxdigit(static_cast<unsigned char>(text_[i])); ++i)
      v = v * 16 + static_cast<uint64_t>(std::stoi(std::string(1, text_[i]), nullptr, 16));
    if (i != stop) throw PtxError(line_, "malformed floating-point literal");
    at_ = i;
    token_.kind = kind;
    token_.value = v;
  };
  char second = at_ + 1 < text_.size() ? text_[at_ + 1] : ' ';
  if (text_[at_] == '0' && (second == 'f' || second == 'F')) {
    hex_literal(Token::Kind::f32, 8);
  } else if (text_[at_] == '0' && (second == 'd' || second == 'D')) {
    hex_literal(Token::Kind::f64, 16);
  } else {
    size_t i = at_;
    while (i < text_.size() && (word_char(text_[i]) || text_[i] == '.')) {
      bool exponent = text_[i] == 'e' || text_[i] == 'E';
      ++i;
      if (exponent && second != 'x' && i < text_.size() && (text_[i] == '-' || text_[i] == '+'))
        ++i;
    }
    std::string s(text_.substr(at_, i - at_));
    char* end = nullptr;
    token_.kind = Token::Kind::integer;
    if (s.find('.') != std::string::npos ||
        (second != 'x' && second != 'X' && s.find_first_of("eE") != std::string::npos)) {
      token_.kind = Token::Kind::f64;
      token_.value = std::bit_cast<uint64_t>(std::strtod(s.c_str(), &end));
    } else if (s.size() > 2 && s[0] == '0' && (s[1] == 'b' || s[1] == 'B')) {
      token_.value = std::strtoull(s.c_str() + 2, &end, 2);
    } else {
      token_.value = std::strtoull(s.c_str(), &end, 0);
    }
    if (*end == 'U' || *end == 'u') ++end;
    if (*end) throw PtxError(line_, "malformed number '" + s + "'");
    at_ = i;
  }
  token_.text = text_.substr(start, at_ - start);
}

void Lexer::advance() {
  bool glued = at_ != 0;
  for (;;) {
    if (at_ >= text_.size()) break;
    char c = text_[at_];
    if (c == '\n') ++line_;
    if (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\0') {
      ++at_;
    } else if (text_.substr(at_, 2) == "//") {
      while (at_ < text_.size() && text_[at_] != '\n') ++at_;
    } else if (text_.substr(at_, 2) == "/*") {
      size_t end = text_.find("*/", at_ + 2);
      if (end == std::string_view::npos) throw PtxError(line_, "comment without end");
      for (; at_ < end + 2; ++at_) line_ += text_[at_] == '\n';
    } else {
      break;
    }
    glued = false;
  }
  token_ = Token{};
  token_.line = line_;
  token_.glued = glued;
  if (at_ >= text_.size()) return;
  char c = text_[at_];
  size_t start = at_;
  if (word_start(c)) {
    while (at_ < text_.size() && word_char(text_[at_])) ++at_;
    token_.kind = Token::Kind::word;
  } else if (c == '.' && at_ + 1 < text_.size() && word_char(text_[at_ + 1])) {
    ++at_;
    while (at_ < text_.size() &&
           (word_char(text_[at_]) || (text_.substr(at_, 2) == "::" && (++at_, true))))
      ++at_;
    token_.kind = Token::Kind::dotted;
  } else if (digit(c)) {
    number();
    return;
  } else if (c == '"') {
    ++at_;
    while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\n') ++at_;
    if (at_ >= text_.size() || text_[at_] != '"') throw PtxError(line_, "string without end");
    ++at_;
    token_.kind = Token::Kind::string;
    token_.text = text_.substr(start + 1, at_ - start - 2);
    return;
  } else {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) > 0x7e)
      throw PtxError(line_, "unexpected byte " + std::to_string(static_cast<unsigned char>(c)));
    ++at_;
    token_.kind = Token::Kind::punctuation;
  }
  token_.text = text_.substr(start, at_ - start);
}

}  // namespace l4k::emu
