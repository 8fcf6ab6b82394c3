// Lanes of a warp: shfl, vote, match, redux, elect, with member masks that are whole, that leave
// lanes out, and that divide the warp into sets which pass different masks in one instruction.
#include "conformance.h"

namespace {

using conformance::Random;

struct Lane {
  uint32_t value, high, delta, index, segment, mask;  // high: of 64-bit values
};

#define SHUFFLED(X, how, lane, clamp) \
  X("shfl.sync." how ".b32", "shfl.sync." how ".b32 d|p, %2, " lane ", " clamp ", %7;")
#define VOTED(X, how, sign)             \
  X("vote.sync." how ".pred " sign "p", \
    "setp.ne.u32 q, %8, 0; vote.sync." how ".pred p, " sign "q, %7; mov.u32 d, 0;")
#define REDUCED(X, how) X("redux.sync." how, "redux.sync." how " d, %2, %7; setp.ne.u32 p, 0, 0;")
// clang-format off: it finds no end with a table like this
#define CASES(X)                                                                   \
  SHUFFLED(X, "up", "%4", "%9")                                                    \
  SHUFFLED(X, "down", "%4", "%6")                                                  \
  SHUFFLED(X, "bfly", "%4", "%6")                                                  \
  SHUFFLED(X, "idx", "%5", "%6")                                                   \
  VOTED(X, "all", "") VOTED(X, "any", "") VOTED(X, "uni", "") VOTED(X, "all", "!") \
  X("vote.sync.ballot.b32",                                                        \
    "setp.ne.u32 q, %8, 0; vote.sync.ballot.b32 d, q, %7; setp.ne.u32 p, 0, 0;")   \
  X("match.any.sync.b32", "match.any.sync.b32 d, %2, %7; setp.ne.u32 p, 0, 0;")    \
  X("match.any.sync.b64", "match.any.sync.b64 d, %3, %7; setp.ne.u32 p, 0, 0;")    \
  X("match.all.sync.b32", "match.all.sync.b32 d|p, %2, %7;")                       \
  X("match.all.sync.b64", "match.all.sync.b64 d|p, %3, %7;")                       \
  REDUCED(X, "add.u32") REDUCED(X, "add.s32") REDUCED(X, "min.u32")                \
  REDUCED(X, "min.s32") REDUCED(X, "max.u32") REDUCED(X, "max.s32")                \
  REDUCED(X, "and.b32") REDUCED(X, "or.b32") REDUCED(X, "xor.b32")                 \
  X("elect.sync", "elect.sync d|p, %7;")
// clang-format on

#define RUN(name, text)                                                                            \
  if (in.mask >> lane & 1) {                                                                       \
    uint32_t d, p;                                                                                 \
    asm volatile("{ .reg .b32 d; .reg .pred p, q; " text " mov.u32 %0, d; selp.u32 %1, 1, 0, p; }" \
                 : "=r"(d), "=r"(p)                                                                \
                 : "r"(in.value), "l"(wide), "r"(in.delta), "r"(in.index), "r"(in.segment | 31),   \
                   "r"(in.mask), "r"(in.value >> 4 & 1), "r"(in.segment));                         \
    *out = make_uint2(d, p);                                                                       \
  }                                                                                                \
  __syncwarp();                                                                                    \
  out += count;

__global__ void family(const Lane* lanes, int count, uint2* out) {
  const int lane = threadIdx.x;
  const Lane in = lanes[blockIdx.x * 32 + lane];
  const uint64_t wide = uint64_t{in.high} << 32 | in.value;
  out += blockIdx.x * 32 + lane;
  CASES(RUN)
}
#define NAME(name, text) name,

// The sets of lanes that take part; every lane of a set passes the set as its mask.
const std::vector<std::vector<uint32_t>> kWhole = {
    {0xffffffff}, {0x0000ffff}, {0xffff0000}, {0x55555555}, {0x00000001}};
const std::vector<std::vector<uint32_t>> kDivided = {
    {0x0000ffff, 0xffff0000}, {0x55555555, 0xaaaaaaaa}, {0x00000001, 0xfffffffe}};

// A lane may read only lanes of its own set: even and odd lanes keep their parity, a half stays in a
// segment of its own, and a set with neither reads itself.
Lane lane_of(uint32_t lane, uint32_t set, const std::vector<uint32_t>& values, Random& draw,
             uint32_t segment) {
  Lane made{draw.one_of(values), draw.below(2), draw.below(32), draw.below(32), segment << 8, set};
  const bool parity = set == 0x55555555 || set == 0xaaaaaaaa;
  if (parity) made.delta &= ~1u, made.index = (made.index & ~1u) | lane % 2;
  else if (set == 0x0000ffff || set == 0xffff0000) made.delta &= 15, made.segment |= 0x1000;
  else if (set != 0xffffffff) made.delta = 0, made.index = lane, made.segment = 0x1f00;
  return made;
}

void add_problems(std::vector<Lane>& lanes, const std::vector<std::vector<uint32_t>>& divisions,
                  uint64_t seed) {
  Random draw{seed};
  const std::vector<std::vector<uint32_t>> pools = {
      {0x80000000, 0x7fffffff, 0, 0xffffffff, 16}, {7}, {0x10, 0x11, 0x01}};
  const uint32_t segments[] = {0, 0x10, 0x18, 0x1c};
  for (const auto& sets : divisions)
    for (int repeat = 0; repeat < 6; ++repeat) {
      std::vector<uint32_t> values = pools[repeat % 3];
      if (repeat >= 3)
        values = {uint32_t(draw.next()), uint32_t(draw.next()), uint32_t(draw.next())};
      const uint32_t segment = segments[draw.below(4)];
      for (uint32_t lane = 0; lane < 32; ++lane) {
        uint32_t mine = 0;
        for (uint32_t set : sets)
          if (set >> lane & 1) mine = set;
        lanes.push_back(lane_of(lane, mine, values, draw, segment));
      }
    }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Lane> lanes;
  const bool divided = argc > 1 && std::string(argv[1]) == "divided";
  add_problems(lanes, divided ? kDivided : kWhole, 7);
  const std::vector<std::string> cases = {CASES(NAME)};
  const int count = static_cast<int>(lanes.size());
  const conformance::Buffer<Lane> in(lanes);
  const conformance::Buffer<uint2> out(cases.size() * count);
  family<<<count / 32, 32, 0, micro::stream()>>>(in.data, count, out.data);
  const std::vector<uint2> results = out.host();
  std::vector<uint32_t> inputs(lanes.size() * 6), outputs(results.size() * 2);
  std::memcpy(inputs.data(), lanes.data(), inputs.size() * 4);
  std::memcpy(outputs.data(), results.data(), outputs.size() * 4);
  conformance::write({cases, count, 6, 2}, inputs, outputs);
}
