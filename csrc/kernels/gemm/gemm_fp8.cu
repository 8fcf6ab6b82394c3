#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_CONFIG("fp8_128x128_1x2_promote");
L4K_GEMM_CONFIG("fp8_256x128_1x2_promote");
L4K_GEMM_CONFIG("fp8_128x256");
L4K_GEMM_CONFIG("fp8_128x256_2x1");
}  // namespace l4k
