// What mma.sync and wgmma have in common.
#pragma once

#include "machine/isa/decode.h"
#include "tensor/mma.h"

namespace l4k::emu {

MmaType mma_operand_type(const Decoder& d, const Type& t);

}  // namespace l4k::emu
