// Turns one parsed instruction into an executable record. Decoders take the modifiers they know;
// what is left over is "not implemented" and reported when (and only when) it is executed.
#pragma once

#include <optional>
#include <string>

#include "machine/memory.h"

namespace l4k::emu {

struct NotImplemented {
  std::string what;
};

enum class Kind : uint8_t { bits, uint, sint, real, bf16, packed_f16, packed_bf16, pred };
struct Type {
  Kind kind = Kind::bits;
  uint32_t bits = 0;
  std::string name;
  bool is_signed() const { return kind == Kind::sint; }
};

class Decoder {
 public:
  Decoder(Program* p, const Image* image, const PtxInstruction* in, Inst* out)
      : program(p), image(image), in(in), out(out), left_(in->mods) {}

  Program* program;
  const Image* image;
  const PtxInstruction* in;
  Inst* out;

  // Modifiers.
  bool take(const char* mod);
  // The first of the space-separated names that is present, as an index; -1 if none.
  int take_one(const char* names);
  Type take_type();  // the next modifier that is a type
  std::optional<Type> try_type();
  void finish();  // everything must have been taken
  [[noreturn]] void unsupported(const std::string& what = "") const;

  // Operands. Out-of-range indices are errors of the module.
  const PtxOperand& operand(size_t i) const;
  size_t operands() const { return in->operands.size(); }
  Src source(const PtxOperand& o, uint32_t bits, bool is_float = false);
  // Also `_`: a scratch register. bits 0: any width.
  Src target(const PtxOperand& o, uint32_t bits);
  uint32_t bits_of(const PtxOperand& o) const;  // of a register; 0 for literals
  void add_source(size_t i, uint32_t bits, bool is_float = false) {
    out->s[out->sources++] = source(operand(i), bits, is_float);
  }
  void add_target(size_t i, uint32_t bits) { out->d[out->targets++] = target(operand(i), bits); }
  Address address(const PtxOperand& o, Space space);
  // The same into s[sources++], imm, bias and c.
  void add_address(size_t i, Space space);
  void add_list(const PtxOperand& o, uint32_t bits, int role, bool is_float = false);
  uint64_t literal(size_t i) const;  // an integer operand that must be constant
  Src constant(const void* lane_value, uint32_t bytes);

 private:
  void check_width(const PtxOperand& o, uint32_t bits) const;  // 0: any
  std::vector<std::string> left_;
};

// Each returns false if the opcode is not theirs.
bool decode_integer(Decoder& d);
bool decode_float(Decoder& d);
bool decode_compare(Decoder& d);
bool decode_convert(Decoder& d);
bool decode_move(Decoder& d);
bool decode_memory(Decoder& d);
bool decode_atomic(Decoder& d);
bool decode_control(Decoder& d);
bool decode_warp(Decoder& d);
bool decode_barrier(Decoder& d);
bool decode_mbarrier(Decoder& d);
bool decode_copy(Decoder& d);
bool decode_bulk(Decoder& d);
bool decode_tensormap(Decoder& d);
bool decode_wgmma(Decoder& d);
bool decode_mma(Decoder& d);

// ---- handlers ---------------------------------------------------------------------------------
// Applies f to the active lanes. Full warps go through a loop the compiler vectorises.
template <typename D, typename F>
inline void each_lane(Warp& w, D* d, F&& f) {
  if (w.active == kAllLanes) {
    D out[32];
    for (int i = 0; i < 32; ++i) out[i] = f(i);
    for (int i = 0; i < 32; ++i) d[i] = out[i];
  } else {
    for (uint32_t l = w.active; l; l &= l - 1) {
      int i = __builtin_ctz(l);
      d[i] = f(i);
    }
  }
}
template <typename D, typename A, typename F>
inline void map1(Warp& w, const Inst& in, F f) {
  const A* a = w.reg<A>(in.s[0]);
  each_lane<D>(w, w.reg<D>(in.d[0]), [&](int i) { return static_cast<D>(f(a[i])); });
}
template <typename D, typename A, typename B, typename F>
inline void map2(Warp& w, const Inst& in, F f) {
  const A* a = w.reg<A>(in.s[0]);
  const B* b = w.reg<B>(in.s[1]);
  each_lane<D>(w, w.reg<D>(in.d[0]), [&](int i) { return static_cast<D>(f(a[i], b[i])); });
}
template <typename D, typename A, typename B, typename C, typename F>
inline void map3(Warp& w, const Inst& in, F f) {
  const A* a = w.reg<A>(in.s[0]);
  const B* b = w.reg<B>(in.s[1]);
  const C* c = w.reg<C>(in.s[2]);
  each_lane<D>(w, w.reg<D>(in.d[0]), [&](int i) { return static_cast<D>(f(a[i], b[i], c[i])); });
}

inline uint64_t get_lane(Warp& w, const Src& s, uint32_t bytes, int lane) {
  switch (bytes) {
    case 2:
      return w.reg<uint16_t>(s)[lane];
    case 4:
      return w.reg<uint32_t>(s)[lane];
    default:
      return w.reg<uint64_t>(s)[lane];
  }
}
inline void put_lane(Warp& w, const Src& s, uint32_t bytes, int lane, uint64_t v) {
  switch (bytes) {
    case 2:
      w.reg<uint16_t>(s)[lane] = static_cast<uint16_t>(v);
      return;
    case 4:
      w.reg<uint32_t>(s)[lane] = static_cast<uint32_t>(v);
      return;
    default:
      w.reg<uint64_t>(s)[lane] = v;
      return;
  }
}
inline uint64_t address_of(Warp& w, const Address& a, int lane) {
  w.use(a.base, 1u << lane);
  uint64_t base = a.bytes == 4 ? w.reg<uint32_t>(a.base)[lane] : w.reg<uint64_t>(a.base)[lane];
  uint64_t v = base + static_cast<uint64_t>(a.offset) + w.bias[static_cast<int>(a.bias)];
  return a.bytes == 4 ? static_cast<uint32_t>(v) : v;
}
// Addresses of the operand that add_address decoded; its register has in.c bytes.
// bytes).
inline void addresses(Warp& w, const Inst& in, uint32_t base_bytes, uint64_t (&out)[32]) {
  uint64_t offset = static_cast<uint64_t>(in.imm) + w.bias[static_cast<int>(in.bias)];
  if (base_bytes == 4) {
    const auto* p = w.reg<uint32_t>(in.s[0]);
    for (int i = 0; i < 32; ++i)
      out[i] = static_cast<uint32_t>(p[i] + static_cast<uint32_t>(offset));
  } else {
    const auto* p = w.reg<uint64_t>(in.s[0]);
    for (int i = 0; i < 32; ++i) out[i] = p[i] + offset;
  }
}

}  // namespace l4k::emu
