// ldmatrix, stmatrix and movmatrix, with rows at addresses in any order.
#include "conformance.h"
#include "ptx/mbarrier.cuh"

namespace {

struct Lane {
  uint32_t data[4], row;  // sixteen bytes of shared memory, and the row whose address it passes
};

#define LOADED(X, trans)                                                                      \
  X("ldmatrix.x1" trans, "ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%8];")     \
  X("ldmatrix.x2" trans, "ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%8];") \
  X("ldmatrix.x4" trans,                                                                      \
    "ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%8];")
#define STORED(X, trans)                                                                      \
  X("stmatrix.x1" trans, "stmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 [%8], {%4};")     \
  X("stmatrix.x2" trans, "stmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 [%8], {%4, %5};") \
  X("stmatrix.x4" trans,                                                                      \
    "stmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 [%8], {%4, %5, %6, %7};")
#define CASES(X)      \
  LOADED(X, "")       \
  LOADED(X, ".trans") \
  STORED(X, "")       \
  STORED(X, ".trans") X("movmatrix.trans", "movmatrix.sync.aligned.m8n8.trans.b16 %0, %4;")

// Registers start as zero and shared memory as the lanes' data; both are written out.
#define RUN(name, text)                                                    \
  {                                                                        \
    for (int i = 0; i < 4; ++i) rows[lane][i] = in.data[i];                \
    __syncwarp();                                                          \
    uint32_t d[4] = {};                                                    \
    asm volatile(text                                                      \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])          \
                 : "r"(in.data[0] ^ 0x5a5au), "r"(in.data[1] ^ 0x5a5au),   \
                   "r"(in.data[2] ^ 0x5a5au), "r"(in.data[3] ^ 0x5a5au),   \
                   "r"(l4k::ptx::smem_address(rows[in.row]))               \
                 : "memory");                                              \
    __syncwarp();                                                          \
    for (int i = 0; i < 4; ++i) out[i] = d[i], out[4 + i] = rows[lane][i]; \
    __syncwarp();                                                          \
    out += count * 8;                                                      \
  }

__global__ void family(const Lane* lanes, int count, uint32_t* out) {
  __shared__ __align__(16) uint32_t rows[32][4];
  const int lane = threadIdx.x;
  const Lane in = lanes[blockIdx.x * 32 + lane];
  out += (blockIdx.x * 32 + lane) * 8;
  CASES(RUN)
}
#define NAME(name, text) name,

}  // namespace

int main() {
  conformance::Random draw{8};
  std::vector<Lane> lanes;
  for (int problem = 0; problem < 8; ++problem) {
    std::vector<uint32_t> order(32);
    for (uint32_t i = 0; i < 32; ++i) order[i] = i;
    for (uint32_t i = 31; problem > 0 && i > 0; --i) std::swap(order[i], order[draw.below(i + 1)]);
    for (uint32_t row : order) {
      Lane lane{{}, row};
      for (uint32_t& word : lane.data) word = uint32_t(draw.next());
      lanes.push_back(lane);
    }
  }
  const std::vector<std::string> cases = {CASES(NAME)};
  const int count = static_cast<int>(lanes.size());
  const conformance::Buffer<Lane> in(lanes);
  const conformance::Buffer<uint32_t> out(cases.size() * count * 8);
  family<<<count / 32, 32, 0, micro::stream()>>>(in.data, count, out.data);
  std::vector<uint32_t> inputs(lanes.size() * 5);
  std::memcpy(inputs.data(), lanes.data(), inputs.size() * 4);
  conformance::write({cases, count, 5, 8}, inputs, out.host());
}
