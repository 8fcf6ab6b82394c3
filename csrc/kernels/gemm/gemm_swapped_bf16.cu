#include "kernels/gemm/launch.cuh"

namespace l4k {
L4K_GEMM_ROW(8);
L4K_GEMM_ROW(9);
L4K_GEMM_ROW(10);
}  // namespace l4k
