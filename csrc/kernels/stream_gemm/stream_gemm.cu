#include "kernels/stream_gemm/stream_gemm.h"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "kernels/stream_gemm/stream_gemm.cuh"

namespace l4k {

namespace {

int tokens_of(const StreamGemmParams& p) { return p.m <= 8 ? 8 : 16; }

StreamRows rows_of(const StreamGemmParams& p) {
  constexpr int kBlock = 128;
  return StreamRows::of(std::min(p.m, tokens_of(p)), p.k / kBlock, 2 * kBlock);
}

// Slots for runs that meet, whatever the offsets.
int64_t slots_of(const StreamGemmParams& p) {
  const int64_t items = rows_of(p).most_items(p.m, tokens_of(p), true);
  return StreamSchedule::slots(static_cast<int>(items * (p.n / 16)), sm_count());
}

template <typename Weights, int kTiles>
cudaError_t launch_stream(StreamGemmParams p, cudaStream_t stream) {
  p.activation_bytes = rows_of(p).capacity;
  LaunchConfig config{.grid = dim3(sm_count()), .block = dim3(kStreamThreads)};
  config.smem_bytes =
      round_up<size_t>(sizeof(StreamSmem<Weights, kTiles>), 128) + p.activation_bytes;
  return launch(stream_gemm_kernel<Weights, kTiles>, config, stream, p,
                static_cast<int>(slots_of(p)));
}

}  // namespace

bool can_stream(const StreamGemmParams& p) {
  return rows_of(p).most_items(p.m, tokens_of(p), false) <= kStreamMaxItems;
}

int64_t stream_gemm_workspace(const StreamGemmParams& p) {
  const int64_t slots = round_up<int64_t>(slots_of(p), 2);
  return tokens_of(p) == 8 ? StreamWorkspace<1>::words(slots) : StreamWorkspace<2>::words(slots);
}

cudaError_t stream_gemm(const StreamGemmParams& p, cudaStream_t stream) {
  const bool plain = p.tile.groups == 1 && !p.tile.zeros;
  if (tokens_of(p) == 8)
    return plain ? launch_stream<Int4Weights<true>, 1>(p, stream)
                 : launch_stream<Int4Weights<false>, 1>(p, stream);
  return plain ? launch_stream<Int4Weights<true>, 2>(p, stream)
               : launch_stream<Int4Weights<false>, 2>(p, stream);
}

}  // namespace l4k
