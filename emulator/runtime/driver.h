// The driver API over the runtime's.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace l4k::emu {

// The driver's code for an error of the runtime.
CUresult driver(cudaError_t e);

}  // namespace l4k::emu
