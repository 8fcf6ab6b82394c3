// The decoders of this folder. Each returns false if the opcode is not its own.
#pragma once

#include "machine/isa/decode.h"

namespace l4k::emu {

bool decode_integer(Decoder& d);  // and not its floating-point namesakes
bool decode_packed_integer(Decoder& d);
bool decode_refused(Decoder& d);
bool decode_bits(Decoder& d);
bool decode_float(Decoder& d);
bool decode_compare(Decoder& d);
bool decode_convert(Decoder& d);
bool decode_move(Decoder& d);
bool decode_memory(Decoder& d);
bool decode_atomic(Decoder& d);
bool decode_control(Decoder& d);
bool decode_warp(Decoder& d);
bool decode_barrier(Decoder& d);
bool decode_mma(Decoder& d);
bool decode_wmma(Decoder& d);

}  // namespace l4k::emu
