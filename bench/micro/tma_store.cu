// What an awaited tensor store costs: a thread a SM stores a box of 2, 16 or 64 KB from shared
// memory and waits until it is written; the same waiting only until shared memory is read, and with
// four stores in flight. Each SM writes its own 256 KB again and again, which L2 holds.
//
// Bound: 64 bytes a cycle out of a SM. No round trip to L2: an H200 takes 63 cycles and one more for
// 32 bytes, at 2, 16 and 64 KB. The wait until written is the same DEPBAR as the wait until read and
// an invalidation of L1; later accesses of the SM are ordered after the store.
// Loop: one UTMASTG (64 KB: four), a commit and a wait; no load, no ordinary store.
// Disbelieve: under 250 cycles for an awaited store (2 KB: 80, where 64 would be its bytes alone),
// over 64 bytes a cycle (both: the wait waits for nothing), over 20,000 cycles.
#include "micro.h"
#include "ptx/tma.cuh"

namespace {

using namespace micro;
using namespace l4k::ptx;

constexpr int kOwnBytes = 256 << 10, kOwnRows = kOwnBytes / kRowBytes;
enum class Wait { kWritten, kRead, kFourInFlight };

template <int kBoxRows, int kBoxes, Wait kWait>
__global__ __launch_bounds__(128) void store(const __grid_constant__ CUtensorMap map,
                                             const uint32_t* words, int rounds, int own_rows,
                                             int64_t* elapsed) {
  extern __shared__ __align__(1024) uint8_t smem[];
  constexpr int kBytes = kBoxes * kBoxRows * kRowBytes;
  for (int i = threadIdx.x; i < kBytes / 4; i += blockDim.x)
    reinterpret_cast<uint32_t*>(smem)[i] = words[i] + blockIdx.x;
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x != 0) return;
  const int first = blockIdx.x * own_rows;
  int row = 0;
  const int64_t begin = cycles();
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int box = 0; box < kBoxes; ++box)
      tma_store_2d(&map, smem + box * kBoxRows * kRowBytes, 0, first + row + box * kBoxRows);
    tma_store_commit();
    if constexpr (kWait == Wait::kWritten) tma_store_wait<0>();
    if constexpr (kWait == Wait::kRead) tma_store_wait_read<0>();
    if constexpr (kWait == Wait::kFourInFlight) tma_store_wait<3>();
    row = row + kBoxes * kBoxRows == own_rows ? 0 : row + kBoxes * kBoxRows;
  }
  tma_store_wait<0>();
  elapsed[blockIdx.x] = cycles() - begin;
}

template <int kBoxRows, int kBoxes, Wait kWait>
void measure(const std::string& name, int grid, bool small) {
  constexpr int kBytes = kBoxes * kBoxRows * kRowBytes;
  const int own_rows = small ? 2 * kBoxes * kBoxRows : kOwnRows;
  const int rounds = small ? 4 : std::max(256, kOwnBytes / kBytes);
  const Rows rows(int64_t{grid} * own_rows, false);
  const Rows source(kBoxes * kBoxRows, true);
  Buffer<int64_t> elapsed(grid);
  const l4k::LaunchConfig config{
      .grid = dim3(grid), .block = dim3(128), .smem_bytes = kBytes, .dependent = false};
  MICRO_CHECK(l4k::launch(store<kBoxRows, kBoxes, kWait>, config, stream(), rows.map(kBoxRows),
                          source.words.data, rounds, own_rows, elapsed.data));
  const std::vector<uint32_t> got = rows.tile_sums(kBoxes * kBoxRows);
  const uint32_t sum = source.tile_sums(kBoxes * kBoxRows)[0];
  const int tiles = own_rows / (kBoxes * kBoxRows);
  for (size_t i = 0; i < got.size(); ++i)
    expect(got[i] == sum + uint32_t(i / tiles) * (kBytes / 4), name + ": what was stored");
  const double each = double(median(elapsed.host())) / rounds;
  print(name, each, "cycles");
  print(name + "_rate", kBytes / each, "bytes/cycle/SM");
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  const int all = l4k::sm_count();
  measure<16, 1, Wait::kWritten>("awaited_2k_one", 1, small);
  measure<128, 1, Wait::kWritten>("awaited_16k_one", 1, small);
  measure<128, 4, Wait::kWritten>("awaited_64k_one", 1, small);
  measure<16, 1, Wait::kWritten>("awaited_2k_all", all, small);
  measure<128, 1, Wait::kWritten>("awaited_16k_all", all, small);
  measure<128, 4, Wait::kWritten>("awaited_64k_all", all, small);
  measure<128, 1, Wait::kRead>("read_16k_all", all, small);
  measure<128, 4, Wait::kRead>("read_64k_all", all, small);
  measure<128, 1, Wait::kFourInFlight>("in_flight_16k_all", all, small);
}
