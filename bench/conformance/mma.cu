// mma.sync in the shapes and types of sm_90. What the accumulator makes of a sum is the machine's
// own: those problems (`sums`) are held to a tolerance, and to models of how it adds.
#include "formats.h"

namespace {

using conformance::Format;
using conformance::Kind;

struct Lane {
  uint32_t a[4], b[2], c[4];
};

#define D4 "{%0, %1, %2, %3}"
#define D2 "{%0, %1}"
#define A4 "{%4, %5, %6, %7}"
#define A2 "{%4, %5}"
#define B2 "{%8, %9}"
#define B1 "{%8}"
#define C4 "{%10, %11, %12, %13}"
#define C2 "{%10, %11}"
#define CASES(X)                                                             \
  X("m16n8k16.row.col.f32.f16.f16.f32", f16, f16, f32, D4, A4, B2, C4)       \
  X("m16n8k16.row.col.f16.f16.f16.f16", f16, f16, f16, D2, A4, B2, C2)       \
  X("m16n8k8.row.col.f32.f16.f16.f32", f16, f16, f32, D4, A2, B1, C4)        \
  X("m16n8k8.row.col.f16.f16.f16.f16", f16, f16, f16, D2, A2, B1, C2)        \
  X("m16n8k16.row.col.f32.bf16.bf16.f32", bf16, bf16, f32, D4, A4, B2, C4)   \
  X("m16n8k8.row.col.f32.bf16.bf16.f32", bf16, bf16, f32, D4, A2, B1, C4)    \
  X("m16n8k8.row.col.f32.tf32.tf32.f32", tf32, tf32, f32, D4, A4, B2, C4)    \
  X("m16n8k4.row.col.f32.tf32.tf32.f32", tf32, tf32, f32, D4, A2, B1, C4)    \
  X("m16n8k32.row.col.f32.e4m3.e4m3.f32", e4m3, e4m3, f32, D4, A4, B2, C4)   \
  X("m16n8k32.row.col.f32.e4m3.e5m2.f32", e4m3, e5m2, f32, D4, A4, B2, C4)   \
  X("m16n8k32.row.col.f32.e5m2.e5m2.f32", e5m2, e5m2, f32, D4, A4, B2, C4)   \
  X("m16n8k32.row.col.s32.s8.s8.s32", s8, s8, s32, D4, A4, B2, C4)           \
  X("m16n8k32.row.col.satfinite.s32.s8.u8.s32", s8, u8, s32, D4, A4, B2, C4) \
  X("m16n8k32.row.col.satfinite.s32.u8.u8.s32", u8, u8, s32, D4, A4, B2, C4) \
  X("m16n8k16.row.col.s32.u8.s8.s32", u8, s8, s32, D4, A2, B1, C4)

#define RUN(name, ta, tb, tc, d_, a_, b_, c_)                                             \
  {                                                                                       \
    const Lane in = lanes[blockIdx.x * 32 + threadIdx.x];                                 \
    uint32_t d[4] = {};                                                                   \
    asm volatile("mma.sync.aligned." name " " d_ ", " a_ ", " b_ ", " c_ ";"              \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                         \
                 : "r"(in.a[0]), "r"(in.a[1]), "r"(in.a[2]), "r"(in.a[3]), "r"(in.b[0]),  \
                   "r"(in.b[1]), "r"(in.c[0]), "r"(in.c[1]), "r"(in.c[2]), "r"(in.c[3])); \
    for (int i = 0; i < 4; ++i) out[i] = d[i];                                            \
    lanes += count, out += count * 4;                                                     \
  }

__global__ void family(const Lane* lanes, int count, uint32_t* out) {
  out += (blockIdx.x * 32 + threadIdx.x) * 4;
  CASES(RUN)
}

struct Case {
  const char* name;
  Format a, b, c;
};
#define NAMED(name, ta, tb, tc, d, a, b, c) {name, Format::ta, Format::tb, Format::tc},

}  // namespace

int main(int argc, char** argv) {
  const bool sums = argc > 1 && std::string(argv[1]) == "sums";
  constexpr Case kCases[] = {CASES(NAMED)};
  constexpr Kind kKinds[] = {Kind::exact, Kind::exact, Kind::special, Kind::special, Kind::tiny};
  constexpr int kProblems = 5, kCount = kProblems * 32;
  conformance::Random draw{sums ? 10u : 9u};
  std::vector<Lane> lanes;
  std::vector<std::string> names;
  for (const Case& c : kCases) {
    names.push_back(std::string("mma.sync.") + c.name);
    for (int i = 0; i < kCount; ++i) {
      const Kind kind = sums ? Kind::sums : kKinds[i / 32];
      Lane lane;
      for (uint32_t& word : lane.a) word = packed(c.a, kind, true, draw);
      for (uint32_t& word : lane.b) word = packed(c.b, kind, false, draw);
      const Kind of_c = kind == Kind::tiny ? Kind::exact : kind;
      for (uint32_t& word : lane.c)
        word = kind == Kind::tiny && c.c != Format::s32 ? 0 : packed(c.c, of_c, false, draw);
      lanes.push_back(lane);
    }
  }
  const conformance::Buffer<Lane> in(lanes);
  const conformance::Buffer<uint32_t> out(lanes.size() * 4);
  family<<<kProblems, 32, 0, micro::stream()>>>(in.data, kCount, out.data);
  std::vector<uint32_t> inputs(lanes.size() * 10);
  std::memcpy(inputs.data(), lanes.data(), inputs.size() * 4);
  conformance::write({names, kCount, 10, 4, true}, inputs, out.host());
}
