#include "kernels/stream_gemm/stream_gemm.h"

#include <algorithm>

#include "host/device.h"
#include "host/launch.h"
#include "kernels/stream_gemm/stream_gemm.cuh"

namespace l4k {

namespace {

// Rows of A take this much shared memory of a CTA; more rows are sliced along K. With the ring it
// leaves an SM to one CTA; the few rows of a single user leave room for the next kernel's.
constexpr int kMaxActivationBytes = 66 * 1024;

StreamRows rows_of(const StreamGemmParams& p, int activation_bytes) {
  constexpr int kBlock = 128;
  return {activation_bytes, p.k / kBlock, 2 * kBlock};
}

int tokens_of(const StreamGemmParams& p) { return p.m <= 8 ? 8 : 16; }

int activation_bytes(const StreamGemmParams& p) {
  const int rows = std::min(p.m, tokens_of(p));
  const StreamRows layout = rows_of(p, 0);
  const int64_t all = int64_t{rows} * StreamRows::pitch(layout.k_blocks, layout.block_bytes);
  return static_cast<int>(std::min<int64_t>(all, kMaxActivationBytes));
}

// Slots for runs that meet, whatever the offsets.
int64_t slots_of(const StreamGemmParams& p) {
  const StreamRows layout = rows_of(p, activation_bytes(p));
  int64_t items = 0;  // sliced ones
  for (int rows = 1; rows <= std::min(p.m, tokens_of(p)); ++rows) {
    const int slices = layout.slices(rows);
    if (slices > 1) items = std::max<int64_t>(items, int64_t{p.m} * slices / rows);
  }
  return StreamSchedule::slots(static_cast<int>(items * (p.n / 16)), sm_count());
}

template <typename Weights, int kTiles>
cudaError_t launch_stream(StreamGemmParams p, cudaStream_t stream) {
  p.activation_bytes = activation_bytes(p);
  LaunchConfig config{.grid = dim3(sm_count()), .block = dim3(kStreamThreads)};
  config.smem_bytes =
      round_up<size_t>(sizeof(StreamSmem<Weights, kTiles>), 128) + p.activation_bytes;
  return launch(stream_gemm_kernel<Weights, kTiles>, config, stream, p,
                static_cast<int>(slots_of(p)));
}

}  // namespace

bool can_stream(const StreamGemmParams& p) {
  const int room = rows_of(p, kMaxActivationBytes).room(1);
  return p.m <= kStreamMaxItems / ceil_div(p.k / 128, room);
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
