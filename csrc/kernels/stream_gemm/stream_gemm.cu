#include "kernels/stream_gemm/stream_gemm.h"

#include <cstdio>

#include "host/device.h"
#include "host/launch.h"
#include "host/tensor_map.h"
#include "kernels/stream_gemm/stream_gemm.cuh"

namespace l4k {

namespace {

// Slots for runs that meet, whatever the offsets.
int64_t slots_of(const StreamGemmParams& p) {
  const StreamRows rows = stream_rows(p.format, p.m, p.k, p.num_experts);
  const int64_t items = rows.most_items(p.m, stream_tokens(p.m), true);
  return StreamSchedule::slots(static_cast<int>(items * ceil_div(p.n, 16)), sm_count());
}

cudaError_t make_source(const StreamGemmParams& p, const char*& tiles) {
  tiles = static_cast<const char*>(p.weights);
  return cudaSuccess;
}

cudaError_t make_source(const StreamGemmParams& p, CUtensorMap& map) {
  const bool fp8 = p.format == StreamFormat::kFp8;
  const auto k = static_cast<uint64_t>(p.k), n = static_cast<uint64_t>(p.n);
  const uint64_t row = k * (fp8 ? 1 : 2);
  const TensorMapSpec spec{
      .type = fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      .rank = 3,
      .base = p.weights,
      .shape = {k, n, static_cast<uint64_t>(p.num_experts)},
      .strides = {row, n * row},
      .box = {static_cast<uint32_t>(stream_unit(p.format).k), 16, 1}};
  return make_tensor_map(spec, &map);
}

template <typename Weights, int kTiles>
cudaError_t launch_stream(StreamGemmParams p, cudaStream_t stream) {
  typename Weights::Source source;
  if (cudaError_t error = make_source(p, source)) return error;
  p.activation_bytes = stream_rows(p.format, p.m, p.k, p.num_experts).capacity;
  LaunchConfig config{.grid = dim3(sm_count()),
                      .block = dim3(StreamSmem<Weights, kTiles>::kThreads)};
  config.smem_bytes =
      round_up<size_t>(sizeof(StreamSmem<Weights, kTiles>), 128) + p.activation_bytes;
  return launch(stream_gemm_kernel<Weights, kTiles>, config, stream, p, source,
                static_cast<int>(slots_of(p)));
}

template <typename Weights>
cudaError_t launch_stream(const StreamGemmParams& p, cudaStream_t stream) {
  return stream_tokens(p.m) == 8 ? launch_stream<Weights, 1>(p, stream)
                                 : launch_stream<Weights, 2>(p, stream);
}

}  // namespace

int64_t stream_gemm_workspace(const StreamGemmParams& p) {
  const int64_t slots = round_up<int64_t>(slots_of(p), 2);
  return stream_tokens(p.m) == 8 ? StreamWorkspace<1>::words(slots)
                                 : StreamWorkspace<2>::words(slots);
}

cudaError_t stream_gemm(const StreamGemmParams& p, cudaStream_t stream) {
  static const bool logs = log_asks_for("gemm");
  if (logs && p.format == StreamFormat::kInt4)
    std::fprintf(stderr, "l4kernels.w4_gemm: m %d, n %d, k %d, experts %d -> streams\n", p.m, p.n,
                 p.k, p.num_experts);
  switch (p.format) {
    case StreamFormat::kBf16:
      return launch_stream<RowMajorWeights<false>>(p, stream);
    case StreamFormat::kFp8:
      return p.scales.along_k() ? launch_stream<RowMajorWeights<true, true>>(p, stream)
                                : launch_stream<RowMajorWeights<true>>(p, stream);
    case StreamFormat::kInt4:
      break;
  }
  return p.tile.groups == 1 && !p.tile.zeros ? launch_stream<Int4Weights<true>>(p, stream)
                                             : launch_stream<Int4Weights<false>>(p, stream);
}

}  // namespace l4k
