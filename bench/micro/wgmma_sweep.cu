// Cycles per wgmma m64 nN k(32 bytes) of one warpgroup a SM, all SMs at once: N from 8 to 256, bf16
// and e4m3, A in shared memory (ss) or in registers (rs), one chain into one accumulator.
//
// Bound: the tensor core takes N / 2 cycles; operands from shared memory (128 bytes a cycle) take
// (2,048 + 32 N) / 128 with A there and 32 N / 128 without, so small N is bound by operands.
// Loop: 16 HGMMA or QGMMA, a commit and a wait that leaves one group running; no load, no store.
// Disbelieve: less than 0.97 N / 2 (the tensor core cannot), more than twice the bound + 32 cycles
// (ptxas has serialised the products).
#include "micro.h"
#include "wgmma_all.cuh"

namespace {

using namespace micro;
using namespace l4k::ptx;

constexpr int kProducts = 16, kBytesA = 64 * 128;

template <int N, typename T, bool kRegisters>
__global__ __launch_bounds__(128) void sweep(const uint8_t* a, const uint8_t* b, int rounds,
                                             float* tile, int64_t* elapsed) {
  extern __shared__ __align__(1024) uint8_t smem[];
  copy_operand(smem, a, kBytesA);
  copy_operand(smem + kBytesA, b, N * 128);
  fence_proxy_async();
  __syncthreads();
  uint32_t fragments[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    if constexpr (kRegisters) load_fragment(smem, step, fragments[step]);
  const uint64_t from_a = smem_descriptor_sw128(smem);
  const uint64_t from_b = smem_descriptor_sw128(smem + kBytesA);
  float d[N / 2] = {};
  const int64_t begin = cycles();
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      const int step = i % kSteps;
      if constexpr (kRegisters) Product<N, T>::rs(d, fragments[step], from_b + 2 * step);
      else Product<N, T>::ss(d, from_a + 2 * step, from_b + 2 * step);
    }
    wgmma_commit();
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  if (threadIdx.x == 0) elapsed[blockIdx.x] = cycles() - begin;
  if (blockIdx.x == 0)
    for (int i = 0; i < N / 2; ++i) tile[tile_index(i, N)] = d[i];
}

template <int N, typename T, bool kRegisters>
void measure(const char* type, bool small) {
  Buffer<uint8_t> a(Operand<T>::bytes(64, 1)), b(Operand<T>::bytes(N, 2));
  const int grid = small ? 1 : l4k::sm_count(), rounds = small ? 2 : 400;
  Buffer<float> tile(64 * N);
  Buffer<int64_t> elapsed(grid);
  const l4k::LaunchConfig config{.grid = dim3(grid),
                                 .block = dim3(128),
                                 .smem_bytes = size_t(kBytesA + N * 128),
                                 .dependent = false};
  const std::string name = std::string(type) + (kRegisters ? "_rs_n" : "_ss_n") + std::to_string(N);
  auto run = [&](int count) {
    MICRO_CHECK(l4k::launch(sweep<N, T, kRegisters>, config, stream(), a.data, b.data, count,
                            tile.data, elapsed.data));
    finish();
  };
  run(1);
  const std::vector<float> got = tile.host();
  constexpr float kTimes = kProducts / kSteps;
  for (int row = 0; row < 64; row += small ? 21 : 1)
    for (int column = 0; column < N; ++column)
      expect(got[row * N + column] == kTimes * Operand<T>::product(row, column, 1, 2),
             name + ": element " + std::to_string(row) + ", " + std::to_string(column));
  run(rounds);
  print(name, double(median(elapsed.host())) / (rounds * kProducts), "cycles/wgmma");
}

template <typename T, bool kRegisters>
void measure_all(const char* type, bool small) {
  measure<8, T, kRegisters>(type, small);
  measure<16, T, kRegisters>(type, small);
  measure<32, T, kRegisters>(type, small);
  measure<64, T, kRegisters>(type, small);
  measure<128, T, kRegisters>(type, small);
  measure<192, T, kRegisters>(type, small);
  measure<256, T, kRegisters>(type, small);
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  measure_all<__nv_bfloat16, false>("bf16", small);
  measure_all<__nv_bfloat16, true>("bf16", small);
  measure_all<__nv_fp8_e4m3, false>("e4m3", small);
  measure_all<__nv_fp8_e4m3, true>("e4m3", small);
}
