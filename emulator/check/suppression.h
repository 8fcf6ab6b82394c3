// Reports that somebody has looked at and accepts: by a comment in the source, or in a file.
#pragma once

#include <bitset>
#include <string>
#include <vector>

#include "check/kinds.h"

namespace l4k::emu {

using KindSet = std::bitset<kFaultKindCount>;

// Adds a kind, or all kinds of a severity. What is wrong with the name, or "".
std::string add_kinds(const std::string& name, KindSet* to);

inline size_t index_of(const FaultKind& k) { return static_cast<size_t>(&k - kFaultKinds); }

struct SourcePlace {
  std::string file;
  int line = 0;
  bool operator==(const SourcePlace&) const = default;
  std::string text() const { return file + ":" + std::to_string(line); }
};

// A line of a file of suppressions: `kind file-glob[:line] # why`.
struct Suppression {
  KindSet kinds;
  std::string glob;  // of a path, or of the last parts of one
  int line = 0;      // 0: any
};

// What is wrong with the file, or "".
std::string read_suppressions(const std::string& path, std::vector<Suppression>* to);

// Whether one of the places is in the list, or has, in its line or as the line above, the comment
// `// l4k-emu: ignore(KIND, ...)`.
bool suppressed(const FaultKind& kind, const std::vector<SourcePlace>& places,
                const std::vector<Suppression>& list);

}  // namespace l4k::emu
