// Loads a module: memory for its variables, layout of shared memory and registers, decoding.
#pragma once

#include "machine/core/program.h"

namespace l4k::emu {

// Throws PtxError. Memory of device variables is registered with the machine.
std::unique_ptr<Image> load_image(const std::string& ptx_text);

}  // namespace l4k::emu
