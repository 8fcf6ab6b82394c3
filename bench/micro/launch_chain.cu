// What one more launch of an empty kernel (132 CTAs of 128 threads) costs in a chain: launched into
// a stream, captured into a graph, each plain or dependent (PDL); and, in a graph, with neighbours
// that want different amounts of shared memory, since a SM may have to drain before it changes its
// carve-out, with and without the preferred carve-out of both kernels at 100 %.
//
// Bound: published for an H200: 2.4 to 2.5 us in a stream, 1.25 to 1.3 in a graph; dependent
// launches should be below, since start and end overlap.
// Loop: none; the kernel holds one ACQBULK (the wait for its predecessor), one PREEXIT (the early
// trigger), and in the timed runs skips its only load and store.
// Disbelieve: under 0.2 us (launches were lost), over 50 us.
#include "micro.h"

namespace {

using namespace micro;
using namespace l4k::ptx;

// Two kernels, so that neighbours are as different as two ops are. `count` is null where time
// counts.
template <int kWhich>
__global__ __launch_bounds__(128) void link(uint32_t* count) {
  grid_launch_dependents();
  grid_dependency_wait();
  if (count != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *count = *count + 1;
}

struct Case {
  const char* name;
  bool graph, dependent;
  int even_kb, odd_kb;  // dynamic shared memory of neighbours
  bool carveout;        // preferred shared memory 100 %
};

constexpr Case kCases[] = {
    {"stream", false, false, 0, 0, false},
    {"stream_dependent", false, true, 0, 0, false},
    {"graph", true, false, 0, 0, false},
    {"graph_dependent", true, true, 0, 0, false},
    {"graph_0k_carveout", true, false, 0, 0, true},
    {"graph_200k", true, false, 200, 200, false},
    {"graph_0k_200k", true, false, 0, 200, false},
    {"graph_0k_200k_carveout", true, false, 0, 200, true},
    {"dependent_0k_carveout", true, true, 0, 0, true},
    {"dependent_100k", true, true, 100, 100, false},
    {"dependent_200k", true, true, 200, 200, false},
    {"dependent_200k_carveout", true, true, 200, 200, true},
    {"dependent_0k_100k", true, true, 0, 100, false},
    {"dependent_0k_100k_carveout", true, true, 0, 100, true},
    {"dependent_0k_200k", true, true, 0, 200, false},
    {"dependent_0k_200k_carveout", true, true, 0, 200, true},
    {"dependent_100k_200k", true, true, 100, 200, false},
    {"dependent_100k_200k_carveout", true, true, 100, 200, true},
};

void measure(const Case& c, bool small) {
  const int carveout = c.carveout ? cudaSharedmemCarveoutMaxShared : cudaSharedmemCarveoutDefault;
  for (auto kernel : {link<0>, link<1>})
    MICRO_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, carveout));
  const int grid = l4k::sm_count();
  auto launch = [&](int i, uint32_t* count) {
    const size_t smem = size_t(i % 2 ? c.odd_kb : c.even_kb) << 10;
    const l4k::LaunchConfig config{
        .grid = dim3(grid), .block = dim3(128), .smem_bytes = smem, .dependent = c.dependent};
    MICRO_CHECK(l4k::launch(i % 2 ? link<1> : link<0>, config, stream(), count));
  };
  Buffer<uint32_t> count(1);
  const int launches = small ? 6 : 50;
  auto counted = [&] {
    for (int i = 0; i < launches; ++i) launch(i, count.data);
  };
  if (c.graph) graph_us(1, counted);
  else event_us(1, counted);
  expect(count.host()[0] == uint32_t(2 * launches), std::string(c.name) + ": launches in order");
  const Chain chain{small ? 2 : 40, small ? 6 : 240, small ? 1 : 15, c.graph};
  print(c.name, chain.us([&](int i) { launch(i, nullptr); }), "us/launch");
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = is_small(argc, argv);
  for (const Case& c : kCases) measure(c, small);
}
