// Tiles as wide as fills the waves.
#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_CONFIG("fp8_128x160_2x1_promote");
L4K_GEMM_CONFIG("fp8_128x112_2x1_promote");
L4K_GEMM_CONFIG("fp8_128x80_2x1_promote");
}  // namespace l4k
