#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_CONFIG("bf16_swap_16x128");
L4K_GEMM_CONFIG("bf16_swap_64x128");
L4K_GEMM_CONFIG("bf16_swap_128x128");
}  // namespace l4k
