#include "kernels/gemm/launch.cuh"

namespace l4k {

template cudaError_t launch_gemm<10>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<11>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<12>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<13>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<14>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<15>(const GemmParams&, cudaStream_t);

}  // namespace l4k
