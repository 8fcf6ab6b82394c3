// Latency of a tensor copy to shared memory: one thread of one SM, one copy in flight, from its
// issue to its mbarrier passing; boxes of 1 KB and 16 KB, from L2 and from DRAM.
//
// Bound: no less than a plain load of the same kind (L2 about 260 cycles, DRAM about 560); 16 KB
// add at least 16,384 / 64 - 16 = 240 cycles at 64 bytes a cycle.
// Loop: one UTMALDG; no load or store of memory beside the mbarrier's.
// Disbelieve: L2 under 300 or over 2,500 cycles, DRAM under 450 or over 5,000, or (the reader's
// part) DRAM below L2.
#include "micro.h"
#include "ptx/tma.cuh"

namespace {

using namespace micro;
using namespace l4k::ptx;

// Boxes from row `first` on. `out`: cycles and nanoseconds of the last pass, cycles of the very
// first copy, sum of the last box.
template <int kBoxRows>
__global__ void latency(const __grid_constant__ CUtensorMap map, int first, int boxes, int passes,
                        int64_t* out) {
  extern __shared__ __align__(1024) uint8_t smem[];
  __shared__ uint64_t full;
  if (threadIdx.x != 0) return;
  mbarrier_init(&full, 1);
  fence_mbarrier_init();
  uint32_t parity = 0;
  int64_t begin = 0, began = 0, first_copy = 0;
  for (int pass = 0; pass < passes; ++pass) {
    begin = cycles();
    began = nanoseconds();
#pragma unroll 1
    for (int box = 0; box < boxes; ++box) {
      mbarrier_arrive_expect_tx(&full, kBoxRows * kRowBytes);
      tma_load_2d(smem, &map, &full, 0, first + box * kBoxRows);
      wait(&full, parity);
      parity ^= 1;
      if (box == 0 && pass == 0) first_copy = cycles() - begin;
    }
    out[0] = cycles() - begin;
    out[1] = nanoseconds() - began;
  }
  out[2] = first_copy;
  uint32_t sum = 0;
  for (int i = 0; i < kBoxRows * kRowBytes / 4; ++i) sum += reinterpret_cast<uint32_t*>(smem)[i];
  out[3] = sum;
}

template <int kBoxRows>
void measure(const std::string& size, const Rows& rows, int first, bool small) {
  const CUtensorMap map = rows.map(kBoxRows);
  const std::vector<uint32_t> sums = rows.tile_sums(kBoxRows);
  Buffer<int64_t> out(4);
  const int boxes = small ? 3 : 128;
  const l4k::LaunchConfig config{
      .grid = dim3(1), .block = dim3(32), .smem_bytes = kBoxRows * kRowBytes, .dependent = false};
  auto run = [&](int passes) {
    MICRO_CHECK(
        l4k::launch(latency<kBoxRows>, config, stream(), map, first, boxes, passes, out.data));
    std::vector<int64_t> got = out.host();
    expect(uint32_t(got[3]) == sums[first / kBoxRows + boxes - 1], "sum of the last box");
    return got;
  };
  // Summing the tiles has left the last 50 MB or so of the tensor in L2: `first` lies far before.
  const std::vector<int64_t> cold = run(1), warm = run(2);
  print("dram_" + size, double(cold[0]) / boxes, "cycles");
  print("dram_" + size + "_ns", double(cold[1]) / boxes, "ns");
  print("l2_" + size, double(warm[0]) / boxes, "cycles");
  print("l2_" + size + "_ns", double(warm[1]) / boxes, "ns");
  print("first_copy_" + size, double(warm[2]), "cycles");
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  const Rows rows(small ? 1024 : 4 << 20, true);
  measure<8>("1k", rows, 0, small);
  measure<128>("16k", rows, small ? 256 : 1 << 20, small);
}
