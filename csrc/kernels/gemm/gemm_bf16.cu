#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_ROW(0);
L4K_GEMM_ROW(1);
L4K_GEMM_ROW(2);
L4K_GEMM_ROW(3);
}  // namespace l4k
