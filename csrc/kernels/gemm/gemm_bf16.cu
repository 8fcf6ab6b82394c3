#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_CONFIG("bf16_128x256");
L4K_GEMM_CONFIG("bf16_128x128");
L4K_GEMM_CONFIG("bf16_128x128_1x2_gelu");
L4K_GEMM_CONFIG("bf16_128x256_2x1");
}  // namespace l4k
