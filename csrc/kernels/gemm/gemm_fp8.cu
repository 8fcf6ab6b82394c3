#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_ROW(4);
L4K_GEMM_ROW(5);
L4K_GEMM_ROW(6);
L4K_GEMM_ROW(7);
}  // namespace l4k
