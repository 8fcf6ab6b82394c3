// l4k_ptx_check FILE...: what of a PTX file, or of an object that embeds PTX, the emulator lacks.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "machine/core/machine.h"
#include "machine/image.h"
#include "ptx/ast.h"

using namespace l4k::emu;

namespace {

int check(const std::string& text) {
  std::map<std::string, std::string> missing;
  size_t instructions = 0;
  try {
    auto image = load_image(text);
    for (const auto& [name, program] : image->programs)
      for (const Inst& in : program->code) {
        ++instructions;
        if (!in.note.empty())
          missing.emplace(in.note, name + ", PTX line " + std::to_string(in.ptx->line));
      }
    std::printf("  %zu functions, %zu instructions, %zu not implemented\n", image->programs.size(),
                instructions, missing.size());
  } catch (const PtxError& e) {
    std::printf("  %s\n", e.what());
    return 1;
  }
  for (const auto& [what, where] : missing) std::printf("  %s (%s)\n", what.c_str(), where.c_str());
  return !missing.empty();
}

}  // namespace

int main(int argc, char** argv) {
  int status = 0;
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    std::string data((std::istreambuf_iterator<char>(file)), {});
    std::printf("%s\n", argv[i]);
    size_t found = 0;
    for (size_t at = data.find(".version "); at != std::string::npos;
         at = data.find(".version ", at + 1)) {
      ++found;
      status |= check(std::string(data.c_str() + at, strnlen(data.c_str() + at, data.size() - at)));
    }
    if (!found) std::printf("  no PTX (compile with --no-compress)\n"), status = 1;
  }
  return status;
}
