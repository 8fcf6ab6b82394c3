// How wgmma and tensor copies share a SM's shared memory: on every SM a warpgroup multiplies bf16
// from shared memory (N = 64, 128, 256) while a fifth warp brings 16 KB boxes from L2 as fast as it
// can; each alone, then both.
//
// Bound: 128 bytes a cycle for both. A product reads (2,048 + 32 N) bytes in N / 2 cycles or more:
// 128, 96 and 80 bytes a cycle at N = 64, 128, 256, which leaves 0, 32 and 48 for copies at full
// tensor rate. Copies alone bring about 38 from L2 with all SMs at it.
// Loops: 16 HGMMA and no load or store; one UTMALDG and no load or store.
// Disbelieve: a product in under 0.97 N / 2 cycles or in over 3 N, copies over 64 bytes a cycle, or
// (the reader's part) products faster with copies than without.
#include "micro.h"
#include "ptx/tma.cuh"
#include "wgmma_all.cuh"

namespace {

using namespace micro;
using namespace l4k::ptx;
using Type = Operand<__nv_bfloat16>;

constexpr int kProducts = 16, kBytesA = 64 * 128;
constexpr int kStages = 6, kTileRows = 128, kTileBytes = kTileRows * kRowBytes;
constexpr int kWindow = 1024;  // tiles

struct Work {
  int rounds;  // of 16 products; 0: none
  int tiles;   // 0: none; otherwise at least this many, and on until the products are done
  int most;    // tiles, however long the products take
  int window, spread;
};

// Copies until it has brought `tiles` and `done` has completed; returns how many.
__device__ int bring(uint8_t* ring, const CUtensorMap* map, uint64_t* full, uint64_t* done,
                     const Work& work) {
  int tile = static_cast<int>(blockIdx.x * int64_t{work.spread} % work.window);
  auto load = [&](int slot) {
    mbarrier_arrive_expect_tx(full + slot, kTileBytes);
    tma_load_2d(ring + slot * kTileBytes, map, full + slot, 0, tile * kTileRows);
    tile = tile + 1 == work.window ? 0 : tile + 1;
  };
  for (int slot = 0; slot < kStages; ++slot) load(slot);
  int count = 0;
#pragma unroll 1
  for (bool more = true; more; ++count) {
    wait(full + count % kStages, count / kStages & 1);
    more = count < work.tiles || (work.rounds > 0 && count < work.most && !test_wait(done, 0));
    if (more) load(count % kStages);
  }
  const int end = count + kStages - 1;
  for (; count < end; ++count) wait(full + count % kStages, count / kStages & 1);
  return count;
}

// `out` of a CTA: cycles of the products, cycles of the copies, tiles.
template <int N>
__global__ __launch_bounds__(160) void share(const __grid_constant__ CUtensorMap map,
                                             const uint8_t* a, const uint8_t* b, Work work,
                                             float* tile, int64_t* out) {
  extern __shared__ __align__(1024) uint8_t smem[];
  __shared__ uint64_t full[kStages], done;
  uint8_t* ring = smem + kBytesA + N * 128;
  copy_operand(smem, a, kBytesA);
  copy_operand(smem + kBytesA, b, N * 128);
  fence_proxy_async();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) mbarrier_init(full + i, 1);
    mbarrier_init(&done, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  const int64_t begin = cycles();
  if (threadIdx.x >= 128) {
    if (threadIdx.x > 128 || work.tiles == 0) return;
    const int tiles = bring(ring, &map, full, &done, work);
    out[blockIdx.x * 3 + 1] = cycles() - begin;
    out[blockIdx.x * 3 + 2] = tiles;
    return;
  }
  if (work.rounds == 0) return;
  const uint64_t from_a = smem_descriptor_sw128(smem);
  const uint64_t from_b = smem_descriptor_sw128(smem + kBytesA);
  float d[N / 2] = {};
#pragma unroll 1
  for (int round = 0; round < work.rounds; ++round) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kProducts; ++i)
      Product<N, __nv_bfloat16>::ss(d, from_a + i % kSteps * 2, from_b + i % kSteps * 2);
    wgmma_commit();
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  if (threadIdx.x == 0) {
    out[blockIdx.x * 3] = cycles() - begin;
    mbarrier_arrive(&done);
  }
  if (blockIdx.x == 0)
    for (int i = 0; i < N / 2; ++i) tile[tile_index(i, N)] = d[i];
}

struct Result {
  double cycles_per_product, bytes_per_cycle;
};

template <int N>
void measure(const Rows& rows, bool small) {
  Buffer<uint8_t> a(Type::bytes(64, 1)), b(Type::bytes(N, 2));
  const CUtensorMap map = rows.map(kTileRows);
  const int grid = small ? 2 : l4k::sm_count(), window = int(rows.rows / kTileRows);
  Buffer<float> tile(64 * N);
  Buffer<int64_t> out(grid * 3);
  const size_t smem = kBytesA + N * 128 + kStages * kTileBytes;
  const l4k::LaunchConfig config{
      .grid = dim3(grid), .block = dim3(160), .smem_bytes = smem, .dependent = false};
  auto run = [&](int rounds, int tiles) {
    const Work work{rounds, tiles, small ? 40 : 1 << 16, window, std::max(1, window / grid)};
    MICRO_CHECK(
        l4k::launch(share<N>, config, stream(), map, a.data, b.data, work, tile.data, out.data));
    const std::vector<int64_t> got = out.host();
    std::vector<double> products, copies;
    for (int i = 0; i < grid; ++i) {
      products.push_back(double(got[i * 3]) / std::max(1, rounds * kProducts));
      copies.push_back(double(got[i * 3 + 2]) * kTileBytes / std::max<int64_t>(1, got[i * 3 + 1]));
    }
    return Result{median(products), median(copies)};
  };
  const int rounds = small ? 2 : 4096 / (N / 64), tiles = small ? 9 : 1024;
  run(2, small ? 3 : 64);  // small sums are exact, and copies beside must not change them
  const std::vector<float> got = tile.host();
  for (int row = 0; row < 64; row += 7)
    for (int column = 0; column < N; column += 3)
      expect(got[row * N + column] == 2 * kProducts / kSteps * Type::product(row, column, 1, 2),
             "product beside copies, n" + std::to_string(N));
  const Result alone = run(rounds, 0), copies = run(0, tiles), both = run(rounds, 1);
  const std::string name = "_n" + std::to_string(N);
  print("products_alone" + name, alone.cycles_per_product, "cycles/wgmma");
  print("products_shared" + name, both.cycles_per_product, "cycles/wgmma");
  print("copies_alone" + name, copies.bytes_per_cycle, "bytes/cycle/SM");
  print("copies_shared" + name, both.bytes_per_cycle, "bytes/cycle/SM");
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  const Rows rows((small ? 12 : kWindow) * kTileRows, true);
  measure<64>(rows, small);
  measure<128>(rows, small);
  measure<256>(rows, small);
}
