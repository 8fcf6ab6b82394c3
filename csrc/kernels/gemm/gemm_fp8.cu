#include "kernels/gemm/launch.cuh"

namespace l4k {

template cudaError_t launch_gemm<4>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<5>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<6>(const GemmParams&, cudaStream_t);

}  // namespace l4k
