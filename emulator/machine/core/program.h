// Predecoded code: what the interpreter executes.
#pragma once

#include <cassert>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "ptx/ast.h"
#include "ptx/special.h"

namespace l4k::emu {

struct Warp;
struct Inst;
struct Program;
using Handler = void (*)(Warp&, const Inst&);

// A register (32 lanes side by side) or, with index 0, a literal in the program's constant pool.
struct Reg {
  uint32_t index = 0, offset = 0;
};

// Of one lane; predicates are one word for the warp.
inline uint32_t register_bytes(uint32_t bits) { return bits <= 1 ? 4 : bits <= 16 ? 2 : bits / 8; }

// Where an address operand's base comes from besides a register.
enum class Bias : uint8_t { none, dynamic_shared, local_frame, frame_params };

struct Address {  // [base + offset]
  Reg base;
  uint32_t bytes = 8;  // of the base register
  int64_t offset = 0;
  Bias bias = Bias::none;
};

// What an instruction's modifiers say: one struct per family of opcodes, which its decoder stores
// and its handlers read back by type.
class Modifiers {
 public:
  template <typename T>
  void store(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof bytes_);
    type_ = &kType<T>;
    std::memcpy(bytes_, &value, sizeof(T));
  }
  template <typename T>
  const T& as() const {
    assert(type_ == &kType<T>);
    return *std::launder(reinterpret_cast<const T*>(bytes_));
  }

 private:
  template <typename T>
  static constexpr char kType = 0;  // its address names the type
  const void* type_ = nullptr;
  alignas(8) uint8_t bytes_[16] = {};
};

// Which undefined sources make the result of an instruction that propagates undefined: every one;
// the one that the last source chooses, a predicate or (slct) a number's sign; none where a source decides a conjunction or disjunction
// whatever the other is (*_not: the last source is a negated predicate).
enum class Flow : uint8_t {
  any,
  choice,
  sign,
  real_sign,
  conjunction,
  disjunction,
  and_not,
  or_not
};

// What the handler does with a vector operand.
enum class ListUse : uint8_t { none, read, written };

struct Inst {
  Handler run = nullptr;
  Reg predicate;
  bool predicate_negated = false;
  bool checks_itself = false;  // the handler looks at register states (moves, wgmma, calls)
  bool propagates = false;     // pure arithmetic: an undefined source makes an undefined result
  Flow flow = Flow::any;       // of those
  bool carries = false;        // the handler passes on what is undefined in `list`
  ListUse list_use = ListUse::none;
  uint8_t sources = 0, targets = 0;
  uint16_t accumulators = 0;  // the first registers of `list`, which a wgmma reads and writes
  Bias bias = Bias::none;
  uint8_t base_bytes = 0;  // of the address register s[0]
  Reg s[4], d[2];
  int64_t imm = 0;      // address offset, or a literal operand
  uint32_t target = 0;  // of a branch
  Modifiers modifiers;
  std::vector<Reg> list;                 // vector operands
  std::vector<uint32_t> branch_targets;  // of brx.idx
  std::vector<Address> at;  // instructions with several addresses; the handler checks their bases
  const Program* callee = nullptr;
  const PtxInstruction* ptx = nullptr;
  std::string note;  // not implemented: what
};

struct InstCounters {
  uint64_t issued = 0, global_bytes = 0, sectors = 0, bulk_bytes = 0, conflicts = 0, flop = 0,
           waits = 0;
  InstCounters& operator+=(const InstCounters& c) {
    issued += c.issued, global_bytes += c.global_bytes, sectors += c.sectors;
    bulk_bytes += c.bulk_bytes, conflicts += c.conflicts, flop += c.flop, waits += c.waits;
    return *this;
  }
};

struct Image;
struct Program {
  const PtxFunction* ptx = nullptr;
  const Image* image = nullptr;
  const PtxModule* module = nullptr;
  std::vector<Inst> code;
  std::vector<uint32_t> offset;  // register -> byte offset in the register file
  uint32_t register_bytes = 0;
  std::vector<uint8_t> pool;  // literals, each repeated for 32 lanes
  uint32_t static_shared_end = 1024;
  uint32_t dynamic_align = 16;
  uint32_t largest_setmaxnreg = 0;  // of all .inc
  // Of a kernel and what it calls: %reserved_smem_offset_1, %envreg1 and 2.
  bool uses_group_scratch = false, uses_grid_workspace = false;
  bool launches_dependents = false, waits_for_dependency = false;
  // Its CTAs may pass something on to those of other clusters, or to the host, while they run.
  bool communicates = false;
};

// A loaded fat binary: programs by function name, device variables with their memory.
struct Image {
  std::unique_ptr<PtxModule> module;
  std::unordered_map<std::string, std::unique_ptr<Program>> programs;
  Program* find(const std::string& name) const {
    auto it = programs.find(name);
    return it == programs.end() ? nullptr : it->second.get();
  }
  // Functions by address: what pointers to them hold.
  std::unordered_map<uint64_t, std::string> function_names;
  uint64_t address_of(const std::string& function);  // 0: there is none of this name
};
}  // namespace l4k::emu
