#include "kernels/process_logits/process_logits.cuh"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"

namespace l4k {
namespace {

bool rows_are_vectors(const void* data, int64_t stride, int element_size) {
  const int vector = kQuad * element_size;
  return reinterpret_cast<uintptr_t>(data) % vector == 0 && stride * element_size % vector == 0;
}

}  // namespace

cudaError_t process_logits(const ProcessLogitsParams& params, cudaStream_t stream) {
  const bool vectors =
      rows_are_vectors(params.logits, params.logits_stride, params.float32 ? 4 : 2) &&
      rows_are_vectors(params.tally, params.tally_stride, 4) &&
      rows_are_vectors(params.bias, params.bias_stride, 4) &&
      rows_are_vectors(params.out, params.vocab, 4);
  const int64_t num_tiles = params.rows * ceil_div(params.vocab, kProcessLogitsTile);
  const int64_t resident = int64_t{sm_count()} * kProcessLogitsCtas;
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(std::min(num_tiles, resident))),
                      .block = dim3(kProcessLogitsThreads)};
  return launch(process_logits_kernel, config, stream, params, vectors);
}

}  // namespace l4k
