#include "kernels/gemm/launch.cuh"

namespace l4k {

template cudaError_t launch_gemm<0>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<1>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<2>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<3>(const GemmParams&, cudaStream_t);

}  // namespace l4k
