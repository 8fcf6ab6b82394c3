// Where a module's shared variables are, and what of them belongs to which kernel.
#pragma once

#include <map>
#include <set>

#include "machine/core/program.h"

namespace l4k::emu {

// A kernel is charged with the variables that it uses, itself or through functions that it may call.
// Those that functions use have one address in all kernels, the kernel's own come after them.
class SharedLayout {
 public:
  explicit SharedLayout(PtxModule& module);
  // Gives a kernel's own variables their addresses, which hold until the next call, and notes in
  // its program where they end.
  void place(Program& kernel);

 private:
  // What a function, or a kernel with everything that it may call, refers to.
  struct Uses {
    std::set<Variable*> shared;
    std::set<const PtxFunction*> functions;
    bool calls_pointers = false, group_scratch = false, grid_workspace = false;
    void add(const Uses& other);
  };
  Uses uses_of(const PtxFunction& f);
  void note(const PtxOperand& o, bool is_callee, Uses* uses);
  void close(Uses* uses) const;
  void place_common();

  PtxModule& module_;
  std::map<const PtxFunction*, Uses> uses_;       // of each function by itself
  std::map<const PtxFunction*, Uses> reachable_;  // of each kernel
  std::set<const PtxFunction*> address_taken_;
  std::set<Variable*> common_;  // of functions: placed
};

}  // namespace l4k::emu
