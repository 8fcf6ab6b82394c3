#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_CONFIG("fp8_swap_16x128_promote");
L4K_GEMM_CONFIG("fp8_swap_64x128_promote");
L4K_GEMM_CONFIG("fp8_swap_64x128");
L4K_GEMM_CONFIG("fp8_swap_128x128");
}  // namespace l4k
