// Tiles as wide as fills the waves.
#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_CONFIG("bf16_128x224_2x1");
L4K_GEMM_CONFIG("bf16_128x160_2x1");
L4K_GEMM_CONFIG("bf16_128x112_2x1");
L4K_GEMM_CONFIG("bf16_128x80_2x1");
}  // namespace l4k
