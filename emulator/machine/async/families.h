// The decoders of this folder. Each returns false if the opcode is not its own.
#pragma once

#include "machine/isa/decode.h"

namespace l4k::emu {

bool decode_mbarrier(Decoder& d);
bool decode_copy(Decoder& d);
bool decode_bulk(Decoder& d);
bool decode_store_async(Decoder& d);
bool decode_tensormap(Decoder& d);
bool decode_wgmma(Decoder& d);

}  // namespace l4k::emu
