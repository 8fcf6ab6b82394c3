// Atomics, each thread on memory of its own: the result, what is returned, wrapping, flushing.
#include "conformance.h"
#include "ptx/mbarrier.cuh"

namespace {

struct Result {
  uint64_t returned, memory;
};

// A case: the registers' letter, the instruction, and whether it compares.
#define BOTH(X, type, op) \
  X(type, "atom.global." op, "l"(global)) X(type, "atom.shared." op, "r"(shared))
// clang-format off: it finds no end with a table like this
#define CASES(X)                                                        \
  BOTH(X, W, "add.u32") BOTH(X, W, "min.u32") BOTH(X, W, "max.s32")     \
  BOTH(X, W, "inc.u32") BOTH(X, W, "dec.u32") BOTH(X, W, "and.b32")     \
  BOTH(X, W, "or.b32") BOTH(X, W, "xor.b32") BOTH(X, W, "exch.b32")     \
  BOTH(X, C, "cas.b32") BOTH(X, D, "add.u64") BOTH(X, D, "min.s64")     \
  BOTH(X, D, "max.u64") BOTH(X, D, "and.b64") BOTH(X, D, "exch.b64")    \
  BOTH(X, CD, "cas.b64") BOTH(X, H, "add.noftz.f16")                    \
  BOTH(X, H, "add.noftz.bf16") BOTH(X, CH, "cas.b16")                   \
  BOTH(X, W, "add.noftz.f16x2") BOTH(X, W, "add.noftz.bf16x2")          \
  BOTH(X, W, "add.f32") BOTH(X, D, "add.f64")
// clang-format on
#define ATOM(type, letter, op, place, ...)                       \
  {                                                              \
    type d;                                                      \
    asm volatile(op " %0, [%1], " __VA_ARGS__                    \
                 : "=" letter(d)                                 \
                 : place, letter((type)in.b), letter((type)in.c) \
                 : "memory");                                    \
    returned = d;                                                \
  }
#define W(op, place) ATOM(uint32_t, "r", op, place, "%2;")
#define H(op, place) ATOM(uint16_t, "h", op, place, "%2;")
#define D(op, place) ATOM(uint64_t, "l", op, place, "%2;")
#define C(op, place) ATOM(uint32_t, "r", op, place, "%3, %2;")
#define CH(op, place) ATOM(uint16_t, "h", op, place, "%3, %2;")
#define CD(op, place) ATOM(uint64_t, "l", op, place, "%3, %2;")

// The same value lies in shared and in global memory; the other one stays as it is.
#define RUN(type, op, place)                                          \
  {                                                                   \
    uint64_t returned = 0;                                            \
    own[threadIdx.x] = memory[i] = in.a;                              \
    type(op, place) const uint64_t in_global = __ldcg(memory + i);    \
    out[i] = {returned, op[5] == 'g' ? in_global : own[threadIdx.x]}; \
    out += count;                                                     \
  }
#define NAME(type, op, place) op,

__global__ void family(const conformance::Row* rows, int count, uint64_t* memory, Result* out) {
  __shared__ uint64_t own[128];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const conformance::Row in = rows[i];
  const uint64_t* global = memory + i;
  const uint32_t shared = l4k::ptx::smem_address(&own[threadIdx.x]);
  CASES(RUN)
}

const std::vector<uint32_t> kEdges = {0x00000000, 0x00000001, 0xffffffff, 0x7fffffff, 0x80000000,
                                      0x00018001, 0x807f007f, 0x3c003f80, 0x7c007f80, 0xfc00ff80,
                                      0x7bff7f7f, 0x7f800000, 0xff800000, 0x7fc00000, 0x00800000};

}  // namespace

int main() {
  std::vector<conformance::Row> rows = conformance::rows_of(conformance::words(kEdges), 200, 13);
  for (size_t i = 0; i < rows.size(); i += 3) rows[i].c = rows[i].a;  // else no comparison holds
  const std::vector<std::string> cases = {CASES(NAME)};
  const int count = static_cast<int>(rows.size());
  const conformance::Buffer<conformance::Row> in(rows);
  const conformance::Buffer<uint64_t> memory(rows.size());
  const conformance::Buffer<Result> out(cases.size() * count);
  family<<<(count + 127) / 128, 128, 0, micro::stream()>>>(in.data, count, memory.data, out.data);
  const std::vector<Result> results = out.host();
  std::vector<uint32_t> inputs(rows.size() * 6), outputs(results.size() * 4);
  std::memcpy(inputs.data(), rows.data(), inputs.size() * 4);
  std::memcpy(outputs.data(), results.data(), outputs.size() * 4);
  conformance::write({cases, count, 6, 4}, inputs, outputs);
}
