#include "probes/mma_tile/mma_tile.cuh"

#include "host/launch.h"
#include "host/tensor_map.h"

namespace l4k {

cudaError_t mma_tile(const MmaTileParams& params, cudaStream_t stream) {
  CUtensorMap maps[3];
  const void* bases[3] = {params.a, params.b, params.d};
  for (int i = 0; i < 3; ++i) {
    TensorMapSpec spec{.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                       .rank = 2,
                       .base = bases[i],
                       .shape = {kMmaTile, kMmaTile},
                       .strides = {kMmaTile * 2},
                       .box = {kMmaTile, kMmaTile}};
    if (cudaError_t error = make_tensor_map(spec, &maps[i]); error != cudaSuccess) return error;
  }
  LaunchConfig config{
      .grid = dim3(1), .block = dim3(128), .smem_bytes = sizeof(MmaTileSmem) + 1024};
  return launch(mma_tile_kernel, config, stream, maps[0], maps[1], maps[2]);
}

}  // namespace l4k
