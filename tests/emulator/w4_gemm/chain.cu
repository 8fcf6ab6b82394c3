// Two dependent products by one configuration of w4_gemm (its number: CONFIG), for the mutants: the
// second takes the result of the first as A, and both read their weights before the wait. The first runs
// twice, as in a graph.
//   chain M N K groups zeros
// Exit status 1: wrong numbers.
#include <cmath>

#include "../kernels/host.h"
#include "kernels/w4_gemm/launch.cuh"

namespace {

using l4k::Int4Tile;

struct Weights {
  int n, k;
  std::vector<float> values;  // [N, K]
  std::vector<uint8_t> tiles;

  Weights(int n, int k, Int4Tile layout, size_t salt) : n(n), k(k), values(size_t(n) * k) {
    const int blocks = k / l4k::kInt4TileK, group_size = l4k::kInt4TileK / layout.groups;
    tiles.resize(size_t(n) / l4k::kInt4TileRows * blocks * layout.bytes());
    for (int row = 0; row < n; ++row)
      for (int i = 0; i < k; ++i) {
        const int within = i % l4k::kInt4TileK, group = within / group_size;
        const size_t tile = size_t(row / l4k::kInt4TileRows) * blocks + i / l4k::kInt4TileK;
        uint8_t* bytes = tiles.data() + tile * layout.bytes();
        const size_t seed = salt + size_t(row) * 131 + i / group_size;
        const int r = row % l4k::kInt4TileRows, slot = l4k::int4_row_slot(r);
        const int zero = layout.zeros ? static_cast<int>(seed * 7 % 16) : 8;
        const float scale = (seed % 3 == 0 ? -1.f : 1.f) / (1 << seed % 4);
        const int code = static_cast<int>((salt + size_t(row) * k + i) * 2654435761u >> 9 & 15);
        const l4k::Int4Place at = l4k::int4_place(r, within);
        reinterpret_cast<uint32_t*>(bytes)[at.word] |= uint32_t(code) << 4 * at.field;
        reinterpret_cast<uint16_t*>(bytes + layout.scales(group))[slot] = to_bf16(scale);
        if (layout.zeros) bytes[layout.zero_points(group) + slot] = static_cast<uint8_t>(zero);
        values[size_t(row) * k + i] = static_cast<float>(code - zero) * scale;
      }
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const int m = std::atoi(argv[1]), n = std::atoi(argv[2]), k = std::atoi(argv[3]);
  const Int4Tile layout{std::atoi(argv[4]), argv[5][0] == '1'};
  std::vector<float> expected = small_floats(size_t(m) * k);
  Buffer<uint16_t> a(to_bf16(expected));
  const Weights weights[] = {{n, k, layout, 0}, {n, n, layout, 7}};
  Buffer<uint8_t> tiles[] = {Buffer<uint8_t>(weights[0].tiles), Buffer<uint8_t>(weights[1].tiles)};
  Buffer<uint16_t> d[] = {Buffer<uint16_t>(size_t(m) * n), Buffer<uint16_t>(size_t(m) * n)};
  constexpr l4k::W4GemmConfig kConfig = l4k::kW4GemmConfigs[CONFIG];
  Buffer<uint32_t> workspace(size_t(l4k::w4_workspace_words(kConfig, l4k::sm_count())));
  for (int i = 0; i < 2; ++i) {
    l4k::W4GemmParams p{};
    p.m = m;
    p.n = n;
    p.k = weights[i].k;
    p.num_experts = 1;
    p.a = i == 0 ? a.data : d[0].data;
    p.a_stride = p.k;
    p.tiles = tiles[i].data;
    p.tile = layout;
    p.epilogue.d = d[i].data;
    p.static_weights = true;
    p.workspace = workspace.data;
    p.nonce = 1 + static_cast<uint64_t>(i);
    CHECK(l4k::launch_w4_gemm<CONFIG>(p, nullptr));
    if (i == 0) {  // a replay of a graph: the same nonce again
      d[0].zero();
      CHECK(l4k::launch_w4_gemm<CONFIG>(p, nullptr));
    }
    expected = matmul(expected, weights[i].values, m, n, p.k);
    for (float& value : expected) value = rounded(value);
  }
  CHECK(cudaDeviceSynchronize());
  const std::vector<uint16_t> got = d[1].download();
  for (size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(from_bf16(got[i]) - expected[i]) <= 0.01f * std::fabs(expected[i]) + 1)) {
      std::printf("FAIL at %zu: got %g, want %g\n", i, from_bf16(got[i]), expected[i]);
      return 1;
    }
  std::printf("PASS\n");
  return 0;
}
