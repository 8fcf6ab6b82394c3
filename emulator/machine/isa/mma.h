// What the decoders of mma.sync, wmma and wgmma have in common.
#pragma once

#include "machine/core/state.h"
#include "machine/isa/decode.h"
#include "tensor/elements.h"
#include "tensor/mma.h"

namespace l4k::emu {

MmaType mma_operand_type(const Decoder& d, const Type& t);
ElementType matrix_type(const Decoder& d, const Type& t);
struct MatrixShape {
  uint16_t m, n, k;
};
MatrixShape take_shape(Decoder& d);  // .m16n8k16
BitOp take_bit_op(Decoder& d);       // .xor.popc, .and.popc
// An operand of a product; `registers`: how many it must have.
void add_matrix(Decoder& d, size_t i, uint32_t bits, bool written, size_t registers);
bool whole_warp(Warp& w, const Inst& in);  // all its lanes are here
// Lets f compute the first `results` of the listed registers from the others.
template <typename F>
void multiply_registers(Warp& w, const Inst& in, size_t results, F f) {
  if (!whole_warp(w, in)) return;
  std::vector<uint8_t*> registers;
  for (const Reg& r : in.list) registers.push_back(w.reg<uint8_t>(r));
  for (size_t i = results; i < in.list.size(); ++i) w.use(in.list[i], kAllLanes);
  f(registers.data());
  for (size_t i = 0; i < results; ++i) w.written(in.list[i], kAllLanes);
}

}  // namespace l4k::emu
