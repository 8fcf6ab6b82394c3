#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_ROW(11);
L4K_GEMM_ROW(12);
L4K_GEMM_ROW(13);
L4K_GEMM_ROW(14);
L4K_GEMM_ROW(15);
L4K_GEMM_ROW(16);
}  // namespace l4k
