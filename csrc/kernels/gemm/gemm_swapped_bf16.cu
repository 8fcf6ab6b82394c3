#include "kernels/gemm/launch.cuh"

namespace l4k {

template cudaError_t launch_gemm<7>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<8>(const GemmParams&, cudaStream_t);
template cudaError_t launch_gemm<9>(const GemmParams&, cudaStream_t);

}  // namespace l4k
