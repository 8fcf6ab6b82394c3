// What the decoders of mma.sync, wmma and wgmma have in common.
#pragma once

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

}  // namespace l4k::emu
