// Tensor copies at the edges of tensors: what lies outside, boxes of odd shapes, swizzles, strides
// over elements, one to five dimensions; stores and reductions, of tensors and of plain bytes.
#include "conformance.h"
#include "ptx/tma.cuh"

namespace {

constexpr int kWords = 1024;  // of the tensor, and of shared memory

enum Op { kLoad, kStore, kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor };

constexpr CUtensorMapSwizzle kNone = CU_TENSOR_MAP_SWIZZLE_NONE;

struct Case {
  std::string name;  // outside is NaN where it begins with `nan`
  Op op;
  CUtensorMapDataType type;
  int bytes, rank;
  cuuint64_t shape[5];
  cuuint32_t box[5];
  int at[5];
  CUtensorMapSwizzle swizzle = kNone;
  cuuint32_t step[5] = {};  // over elements; 0 is 1
};

struct Copy {
  Op op;
  int rank, bytes, at[5];
};

#define COORDINATES_1 "{%0}"
#define COORDINATES_2 "{%0, %1}"
#define COORDINATES_3 "{%0, %1, %2}"
#define COORDINATES_4 "{%0, %1, %2, %3}"
#define COORDINATES_5 "{%0, %1, %2, %3, %4}"
#define AT "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]), "r"(c.at[4])
#define LOAD(n)                                                                                  \
  case n:                                                                                        \
    asm volatile(                                                                                \
        "cp.async.bulk.tensor." #n                                                               \
        "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%5], [%6, " COORDINATES_##n \
        "], [%7];" ::AT,                                                                         \
        "r"(smem), "l"(&map), "r"(l4k::ptx::smem_address(barrier))                               \
        : "memory");                                                                             \
    break;
#define STORE(n)                                                                               \
  case n:                                                                                      \
    asm volatile("cp.async.bulk.tensor." #n                                                    \
                 "d.global.shared::cta.tile.bulk_group [%6, " COORDINATES_##n "], [%5];" ::AT, \
                 "r"(smem), "l"(&map)                                                          \
                 : "memory");                                                                  \
    break;
#define REDUCE(op_, text)                                                  \
  case op_:                                                                \
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta." text \
                 ".tile.bulk_group [%6, " COORDINATES_2 "], [%5];" ::AT,   \
                 "r"(smem), "l"(&map)                                      \
                 : "memory");                                              \
    break;

__device__ void perform(const CUtensorMap& map, const Copy& c, uint32_t smem, uint64_t* barrier) {
  if (c.op == kLoad) {
    l4k::ptx::mbarrier_arrive_expect_tx(barrier, c.bytes);
    switch (c.rank) { LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5) }
    while (!micro::try_wait(barrier, 0)) {
    }
    return;
  }
  if (c.op == kStore) {
    switch (c.rank) { STORE(1) STORE(2) STORE(3) STORE(4) STORE(5) }
  } else {
    switch (c.op) {
      REDUCE(kAdd, "add")
      REDUCE(kMin, "min")
      REDUCE(kMax, "max")
      REDUCE(kInc, "inc")
      REDUCE(kDec, "dec") REDUCE(kAnd, "and") REDUCE(kOr, "or") REDUCE(kXor, "xor") default : break;
    }
  }
  l4k::ptx::tma_store_commit();
  l4k::ptx::tma_store_wait<0>();
}

__global__ __launch_bounds__(128) void family(const __grid_constant__ CUtensorMap map,
                                              const __grid_constant__ Copy copy,
                                              const uint32_t* words, uint32_t* out) {
  __shared__ __align__(1024) uint32_t smem[kWords];
  __shared__ __align__(8) uint64_t barrier;
  for (int i = threadIdx.x; i < kWords; i += 128) smem[i] = words[i];
  if (threadIdx.x == 0) l4k::ptx::mbarrier_init(&barrier, 1);
  l4k::ptx::fence_mbarrier_init();
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) perform(map, copy, l4k::ptx::smem_address(smem), &barrier);
  __syncthreads();
  if (copy.op == kLoad)
    for (int i = threadIdx.x; i < kWords; i += 128) out[i] = smem[i];
}

#define T(name) CU_TENSOR_MAP_DATA_TYPE_##name
// Words of 4 bytes in 32 rows of as many, unless the case says otherwise.
std::vector<Case> edge_cases() {
  return {
      {"corner", kLoad, T(FLOAT32), 4, 2, {32, 32}, {8, 8}, {-3, -2}},
      {"other corner", kLoad, T(FLOAT32), 4, 2, {32, 32}, {8, 8}, {28, 29}},
      {"outside", kLoad, T(FLOAT32), 4, 2, {32, 32}, {8, 8}, {40, -9}},
      {"ragged", kLoad, T(FLOAT32), 4, 2, {29, 31}, {12, 5}, {20, 28}},
      {"odd rows", kLoad, T(UINT8), 1, 2, {77, 21}, {48, 7}, {-5, 17}},
      {"one", kLoad, T(INT32), 4, 1, {1000}, {64}, {980}},
      {"long", kLoad, T(INT64), 8, 2, {9, 15}, {4, 6}, {6, -1}},
      {"double", kLoad, T(FLOAT64), 8, 2, {9, 15}, {4, 6}, {-1, 12}},
      {"nan f32", kLoad, T(FLOAT32), 4, 2, {30, 30}, {8, 8}, {26, 26}},
      {"nan f16", kLoad, T(FLOAT16), 2, 2, {60, 30}, {16, 8}, {50, -2}},
      {"nan bf16", kLoad, T(BFLOAT16), 2, 2, {60, 30}, {16, 8}, {-2, 26}},
      {"nan f64", kLoad, T(FLOAT64), 8, 2, {9, 15}, {4, 6}, {7, 12}},
      {"three", kLoad, T(UINT16), 2, 3, {24, 5, 7}, {8, 3, 4}, {20, -1, 5}},
      {"four", kLoad, T(UINT32), 4, 4, {12, 3, 4, 5}, {4, 2, 3, 2}, {-2, 2, 2, 4}},
      {"five", kLoad, T(FLOAT32), 4, 5, {8, 3, 2, 3, 4}, {4, 2, 2, 2, 2}, {6, -1, 1, 2, -1}},
      {"every second row", kLoad, T(FLOAT32), 4, 2, {32, 29}, {8, 16}, {2, 5}, kNone, {1, 2}},
      {"every third row", kLoad, T(FLOAT32), 4, 2, {32, 32}, {8, 16}, {-4, -4}, kNone, {1, 3}},
      {"store", kStore, T(FLOAT32), 4, 2, {32, 32}, {8, 8}, {3, 5}},
      {"store at a corner", kStore, T(FLOAT32), 4, 2, {29, 31}, {12, 5}, {22, 29}},
      {"store before", kStore, T(UINT16), 2, 2, {60, 30}, {16, 8}, {-5, -3}},
      {"store of one", kStore, T(UINT32), 4, 1, {1000}, {64}, {970}},
      {"store of three", kStore, T(UINT16), 2, 3, {24, 5, 7}, {8, 3, 4}, {20, -1, 5}},
      {"store of five", kStore, T(FLOAT32), 4, 5, {8, 3, 2, 3, 4}, {4, 2, 2, 2, 2}, {6, -1, 1, 2}}};
}

void add_swizzled(std::vector<Case>& found, const std::string& span, CUtensorMapSwizzle swizzle) {
  const cuuint32_t words = std::stoi(span) / 4;
  for (Op op : {kLoad, kStore}) {
    const std::string name = (op == kLoad ? "load" : "store") + (" swizzled by " + span);
    found.push_back({name, op, T(FLOAT32), 4, 2, {32, 32}, {words, 20}, {0, 3}, swizzle});
    found.push_back({
        .name = name + " at an edge",
        .op = op,
        .type = T(FLOAT32),
        .bytes = 4,
        .rank = 2,
        .shape = {32, 30},
        .box = {words, 17},
        .at = {-5, 20},
        .swizzle = swizzle,
    });
    found.push_back({
        .name = name + " of halves",
        .op = op,
        .type = T(UINT16),
        .bytes = 2,
        .rank = 2,
        .shape = {64, 32},
        .box = {2 * words, 9},
        .at = {50, -2},
        .swizzle = swizzle,
    });
  }
}

struct Reduction {
  const char* name;
  Op op;
  CUtensorMapDataType type;
  int bytes;
};
constexpr Reduction kReductions[] = {
    {"add.u32", kAdd, T(UINT32), 4},    {"add.s32", kAdd, T(INT32), 4},
    {"add.u64", kAdd, T(UINT64), 8},    {"add.f32", kAdd, T(FLOAT32), 4},
    {"add.f16", kAdd, T(FLOAT16), 2},   {"add.bf16", kAdd, T(BFLOAT16), 2},
    {"min.u32", kMin, T(UINT32), 4},    {"min.s32", kMin, T(INT32), 4},
    {"min.f16", kMin, T(FLOAT16), 2},   {"min.bf16", kMin, T(BFLOAT16), 2},
    {"max.s64", kMax, T(INT64), 8},     {"max.f16", kMax, T(FLOAT16), 2},
    {"max.bf16", kMax, T(BFLOAT16), 2}, {"inc.u32", kInc, T(UINT32), 4},
    {"dec.u32", kDec, T(UINT32), 4},    {"and.b32", kAnd, T(UINT32), 4},
    {"or.b32", kOr, T(UINT32), 4},      {"xor.b64", kXor, T(UINT64), 8},
};

std::vector<Case> cases() {
  std::vector<Case> found = edge_cases();
  add_swizzled(found, "32", CU_TENSOR_MAP_SWIZZLE_32B);
  add_swizzled(found, "64", CU_TENSOR_MAP_SWIZZLE_64B);
  add_swizzled(found, "128", CU_TENSOR_MAP_SWIZZLE_128B);
  for (const Reduction& r : kReductions) {
    const cuuint32_t width = 128 / r.bytes;
    found.push_back({
        .name = std::string("reduce ") + r.name,
        .op = r.op,
        .type = r.type,
        .bytes = r.bytes,
        .rank = 2,
        .shape = {width, 30},
        .box = {width / 2, 20},
        .at = {int(width) / 2 + 2, 14},
    });
  }
  return found;
}

int step_of(const Case& c, int dimension) { return std::max<int>(c.step[dimension], 1); }

CUtensorMap map_of(const Case& c, void* base) {
  static const auto encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult result;
    MICRO_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000,
                                                 cudaEnableDefault, &result));
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(symbol);
  }();
  cuuint64_t strides[4], stride = (c.shape[0] * c.bytes + 15) / 16 * 16;
  if (c.rank == 2) stride = 128;
  for (int i = 0; i < c.rank - 1; ++i) strides[i] = stride, stride *= c.shape[i + 1];
  cuuint32_t steps[5];
  for (int i = 0; i < 5; ++i) steps[i] = step_of(c, i);
  const bool nan = c.name.starts_with("nan");
  CUtensorMap map;
  const CUresult result = encode(
      &map, c.type, c.rank, base, c.shape, strides, c.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      c.swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
      nan ? CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA : CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  micro::expect(result == CUDA_SUCCESS, c.name + ": cuTensorMapEncodeTiled");
  return map;
}

}  // namespace

int main() {
  conformance::Random draw{15};
  std::vector<uint32_t> words(kWords), inputs, outputs;
  for (uint32_t& word : words) word = uint32_t(draw.next());
  std::vector<std::string> names;
  for (const Case& c : cases()) {
    const conformance::Buffer<uint32_t> in(words), tensor(words), out(kWords);
    Copy copy{c.op, c.rank, c.bytes, {}};
    for (int i = 0; i < c.rank; ++i) copy.bytes *= (c.box[i] + step_of(c, i) - 1) / step_of(c, i);
    std::copy(c.at, c.at + 5, copy.at);
    family<<<1, 128, 0, micro::stream()>>>(map_of(c, tensor.data), copy, in.data, out.data);
    const std::vector<uint32_t> result = (c.op == kLoad ? out : tensor).host();
    outputs.insert(outputs.end(), result.begin(), result.end());
    names.push_back("tma " + c.name);
  }
  conformance::write({names, kWords, 1, 1}, words, outputs);
}
