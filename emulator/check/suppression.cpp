#include "check/suppression.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>

namespace l4k::emu {
namespace {

std::string known_names() {
  std::string names = "benign, rule, error";
  for (const FaultKind& k : kFaultKinds)
    if (!k.final) names += std::string(", ") + k.name;
  return names;
}

// The kinds that the comment on a line of source names.
KindSet named_in(const std::string& text, const std::string& where) {
  static const std::string kStart = "l4k-emu: ignore(";
  KindSet kinds;
  size_t comment = text.find("//"), at = text.find(kStart);
  size_t end = at == text.npos ? at : text.find(')', at);
  if (end == text.npos || comment > at) return kinds;
  std::string names = text.substr(at + kStart.size(), end - at - kStart.size());
  std::replace(names.begin(), names.end(), ',', ' ');
  std::istringstream words(names);
  for (std::string name; words >> name;)
    if (std::string error = add_kinds(name, &kinds); !error.empty())
      std::fprintf(stderr, "l4k emulator: %s: %s\n", where.c_str(), error.c_str());
  return kinds;
}

// A source file's comments, by line.
using Comments = std::map<int, KindSet>;
const Comments& comments_of(const std::string& path) {
  static thread_local std::map<std::string, Comments> files;
  auto [it, fresh] = files.try_emplace(path);
  if (!fresh) return it->second;
  std::ifstream in(path);
  std::string text;
  for (int line = 1; std::getline(in, text); ++line) {
    KindSet kinds = named_in(text, path + ":" + std::to_string(line));
    if (kinds.none()) continue;
    size_t first = text.find_first_not_of(" \t");
    bool alone = text.compare(first, 2, "//") == 0;  // then it holds for the next line
    it->second[alone ? line + 1 : line] |= kinds;
  }
  return it->second;
}

// `*` stands for any characters, `?` for one.
bool fits(const char* glob, const char* text) {
  if (*glob == '*') return fits(glob + 1, text) || (*text && fits(glob, text + 1));
  if (!*glob || !*text) return *glob == *text;
  return (*glob == '?' || *glob == *text) && fits(glob + 1, text + 1);
}

bool matches(const Suppression& s, const SourcePlace& p) {
  if (s.line && s.line != p.line) return false;
  return fits(s.glob.c_str(), p.file.c_str()) || fits(("*/" + s.glob).c_str(), p.file.c_str());
}

}  // namespace

std::string add_kinds(const std::string& name, KindSet* to) {
  const FaultKind* one = find_fault_kind(name);
  if (one && one->final) return "no launch can go on after " + name + ": it cannot be ignored";
  KindSet kinds;
  for (const FaultKind& k : kFaultKinds)
    if (!k.final && (&k == one || name == name_of(k.severity))) kinds.set(index_of(k));
  *to |= kinds;
  if (kinds.any()) return "";
  return "no kind of report is called '" + name + "'; expected one of " + known_names();
}

std::string read_suppressions(const std::string& path, std::vector<Suppression>* to) {
  std::ifstream in(path);
  if (!in) return "the file of suppressions '" + path + "' cannot be read";
  std::string text;
  for (int line = 1; std::getline(in, text); ++line) {
    std::istringstream words(text.substr(0, text.find('#')));
    std::string kind, extra;
    Suppression s;
    if (!(words >> kind)) continue;
    std::string error = add_kinds(kind, &s.kinds);
    if (error.empty() && (!(words >> s.glob) || words >> extra))
      error = "expected 'kind file-glob[:line] # why', got '" + text + "'";
    if (!error.empty()) return path + ":" + std::to_string(line) + ": " + error;
    size_t colon = s.glob.rfind(':');
    if (colon != s.glob.npos && std::sscanf(s.glob.c_str() + colon, ":%d", &s.line) == 1)
      s.glob.resize(colon);
    to->push_back(std::move(s));
  }
  return "";
}

bool suppressed(const FaultKind& kind, const std::vector<SourcePlace>& places,
                const std::vector<Suppression>& list) {
  auto accepts = [&](const SourcePlace& p) {
    const Comments& comments = comments_of(p.file);
    auto it = comments.find(p.line);
    return it != comments.end() && it->second[index_of(kind)];
  };
  auto listed = [&](const SourcePlace& p) {
    return std::any_of(list.begin(), list.end(), [&](const Suppression& s) {
      return s.kinds[index_of(kind)] && matches(s, p);
    });
  };
  return std::any_of(places.begin(), places.end(),
                     [&](const SourcePlace& p) { return listed(p) || accepts(p); });
}

}  // namespace l4k::emu
