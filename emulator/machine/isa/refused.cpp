// Whole families that the emulator does not implement, each with its name for the report. Comes after
// all other decoders.
#include "machine/isa/families.h"

namespace l4k::emu {

bool decode_refused(Decoder& d) {
  static constexpr struct {
    const char *opcode, *why;
  } kRefused[] = {{"tex", "textures are not implemented: read the data with ld"},
                  {"tld4", "textures are not implemented: read the data with ld"},
                  {"txq", "textures are not implemented"},
                  {"istypep", "textures are not implemented"},
                  {"suld", "surfaces are not implemented: read the data with ld"},
                  {"sust", "surfaces are not implemented: write the data with st"},
                  {"sured", "surfaces are not implemented: use red"},
                  {"suq", "surfaces are not implemented"},
                  {"multimem", "memory of several devices is not implemented"},
                  {"tcgen05", "it is of sm_100, not of sm_90a"},
                  {"clusterlaunchcontrol", "it is of sm_100, not of sm_90a"}};
  for (const auto& r : kRefused)
    if (d.in->opcode == r.opcode) d.unsupported(r.why);
  if (d.in->opcode[0] == 'v') d.unsupported("scalar video instructions are not implemented");
  if (d.in->opcode == "st" && d.in->has("bulk")) d.unsupported("it is of sm_100, not of sm_90a");
  return false;
}

}  // namespace l4k::emu
