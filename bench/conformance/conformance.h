// What the families share: inputs, and the table of results that a program writes.
//
// A program is one family. It writes to standard output a line of JSON with the names of its cases
// and the shape of its table, the words of the inputs, and the words of the outputs: for every case
// `rows` rows of `output_words`. Inputs are the same in every run and on every machine.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "../micro/micro.h"

namespace conformance {

using micro::Buffer;
using micro::finish;

struct Table {
  std::vector<std::string> cases;
  int rows, input_words, output_words;
  bool own_inputs = false;  // every case has rows of its own, else all share them
};

inline void write(const Table& table, const std::vector<uint32_t>& inputs,
                  const std::vector<uint32_t>& outputs) {
  const size_t rows = table.rows, count = table.cases.size();
  micro::expect(inputs.size() == rows * table.input_words * (table.own_inputs ? count : 1) &&
                    outputs.size() == rows * table.output_words * count,
                "the table's shape is not that of its words");
  std::printf("{\"rows\": %d, \"input_words\": %d, \"output_words\": %d, \"own_inputs\": %d",
              table.rows, table.input_words, table.output_words, int(table.own_inputs));
  std::printf(", \"cases\": [");
  for (size_t i = 0; i < count; ++i)
    std::printf("%s\"%s\"", i == 0 ? "" : ", ", table.cases[i].c_str());
  std::printf("]}\n");
  std::fwrite(inputs.data(), 4, inputs.size(), stdout);
  std::fwrite(outputs.data(), 4, outputs.size(), stdout);
}

// splitmix64: the same words everywhere.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  uint32_t below(uint32_t count) { return static_cast<uint32_t>(next() >> 32) % count; }
  template <typename T>
  T one_of(const std::vector<T>& pool) {
    return pool[below(static_cast<uint32_t>(pool.size()))];
  }
};

// ---- instructions of one thread: a row is the operands a, b and c, each in 64 bits ---------------
struct Row {
  uint64_t a, b, c;
};

// Every pair of edges, then rows in which each operand is an edge or random bits.
inline std::vector<Row> rows_of(const std::vector<uint64_t>& edges, int random, uint64_t seed) {
  Random draw{seed};
  std::vector<Row> rows;
  for (uint64_t a : edges)
    for (uint64_t b : edges) rows.push_back({a, b, draw.one_of(edges)});
  auto operand = [&] { return draw.below(4) == 0 ? draw.one_of(edges) : draw.next(); };
  for (int i = 0; i < random; ++i) {
    const uint64_t a = operand(), b = operand();
    rows.push_back({a, b, operand()});
  }
  return rows;
}

// Each 32-bit pattern with another behind it, for operands of 64 bits.
inline std::vector<uint64_t> words(std::vector<uint32_t> patterns) {
  std::vector<uint64_t> pool;
  for (size_t i = 0; i < patterns.size(); ++i)
    pool.push_back(patterns[i] | uint64_t{patterns[(i * 5 + 3) % patterns.size()]} << 32);
  return pool;
}

using Kernel = void (*)(const Row* rows, int count, uint64_t* out);

inline void run(Kernel kernel, std::vector<std::string> cases, const std::vector<Row>& rows) {
  const int count = static_cast<int>(rows.size());
  const Buffer<Row> in(rows);
  const Buffer<uint64_t> out(cases.size() * count);
  kernel<<<(count + 127) / 128, 128, 0, micro::stream()>>>(in.data, count, out.data);
  const std::vector<uint64_t> results = out.host();
  std::vector<uint32_t> inputs(rows.size() * 6), outputs(results.size() * 2);
  std::memcpy(inputs.data(), rows.data(), inputs.size() * 4);
  std::memcpy(outputs.data(), results.data(), outputs.size() * 4);
  write({std::move(cases), count, 6, 2}, inputs, outputs);
}

}  // namespace conformance

// A list of cases is a macro `CASES(X)` of X(shape, instruction, tail): once expanded to code, once
// to names. A shape says what registers an instruction takes: result, then operands, R of 32 bits, H
// of 16, L of 64, P a predicate; `tail` is an immediate after them.
#define CONFORMANCE_ASM(type, letter, text, ...) \
  type d;                                        \
  asm(text : letter(d) : __VA_ARGS__)
#define R_R(op, tail) CONFORMANCE_ASM(uint32_t, "=r", op " %0, %1" tail ";", "r"(a))
#define R_RR(op, tail) CONFORMANCE_ASM(uint32_t, "=r", op " %0, %1, %2" tail ";", "r"(a), "r"(b))
#define R_RRR(op, tail) \
  CONFORMANCE_ASM(uint32_t, "=r", op " %0, %1, %2, %3" tail ";", "r"(a), "r"(b), "r"(c))
#define R_RRRR(op, tail) \
  CONFORMANCE_ASM(uint32_t, "=r", op " %0, %1, %2, %3, %4" tail ";", "r"(a), "r"(b), "r"(c), "r"(e))
#define R_H(op, tail) CONFORMANCE_ASM(uint32_t, "=r", op " %0, %1" tail ";", "h"(ah))
#define R_L(op, tail) CONFORMANCE_ASM(uint32_t, "=r", op " %0, %1" tail ";", "l"(bl))
#define H_R(op, tail) CONFORMANCE_ASM(uint16_t, "=h", op " %0, %1" tail ";", "r"(a))
#define H_RR(op, tail) CONFORMANCE_ASM(uint16_t, "=h", op " %0, %1, %2" tail ";", "r"(a), "r"(b))
#define H_L(op, tail) CONFORMANCE_ASM(uint16_t, "=h", op " %0, %1" tail ";", "l"(bl))
#define H_H(op, tail) CONFORMANCE_ASM(uint16_t, "=h", op " %0, %1" tail ";", "h"(ah))
#define H_HH(op, tail) CONFORMANCE_ASM(uint16_t, "=h", op " %0, %1, %2" tail ";", "h"(ah), "h"(bh))
#define H_HHH(op, tail) \
  CONFORMANCE_ASM(uint16_t, "=h", op " %0, %1, %2, %3" tail ";", "h"(ah), "h"(bh), "h"(ch))
#define L_H(op, tail) CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1" tail ";", "h"(ah))
#define L_R(op, tail) CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1" tail ";", "r"(a))
#define L_RR(op, tail) CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1, %2" tail ";", "r"(a), "r"(b))
#define L_RRL(op, tail) \
  CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1, %2, %3" tail ";", "r"(a), "r"(b), "l"(cl))
#define L_L(op, tail) CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1" tail ";", "l"(bl))
#define L_LL(op, tail) CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1, %2" tail ";", "l"(al), "l"(bl))
#define L_LLL(op, tail) \
  CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1, %2, %3" tail ";", "l"(al), "l"(bl), "l"(cl))
#define L_LR(op, tail) CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1, %2" tail ";", "l"(al), "r"(c))
#define L_LRR(op, tail) \
  CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1, %2, %3" tail ";", "l"(al), "r"(c), "r"(e))
#define L_LLRR(op, tail)                                                                       \
  CONFORMANCE_ASM(uint64_t, "=l", op " %0, %1, %2, %3, %4" tail ";", "l"(al), "l"(bl), "r"(c), \
                  "r"(e))
#define CONFORMANCE_PREDICATE(text) "{ .reg .pred p; " text "; selp.u32 %0, 1, 0, p; }"
#define P_R(op, tail) \
  CONFORMANCE_ASM(uint32_t, "=r", CONFORMANCE_PREDICATE(op " p, %1" tail), "r"(a))
#define P_RR(op, tail) \
  CONFORMANCE_ASM(uint32_t, "=r", CONFORMANCE_PREDICATE(op " p, %1, %2" tail), "r"(a), "r"(b))
#define P_HH(op, tail) \
  CONFORMANCE_ASM(uint32_t, "=r", CONFORMANCE_PREDICATE(op " p, %1, %2" tail), "h"(ah), "h"(bh))

#define ROUNDED(X, shape, op, rest) \
  X(shape, op ".rn" rest, "")       \
  X(shape, op ".rz" rest, "") X(shape, op ".rm" rest, "") X(shape, op ".rp" rest, "")

#define CONFORMANCE_RUN(shape, op, tail) \
  {                                      \
    shape(op, tail);                     \
    *out = d;                            \
    out += count;                        \
  }
#define CONFORMANCE_NAME(shape, op, tail) op tail,

// The kernel of a family of such instructions, and its program.
#define CONFORMANCE_FAMILY(CASES, rows)                                                      \
  __global__ void family(const conformance::Row* in, int count, uint64_t* out) {             \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;                                     \
    if (i >= count) return;                                                                  \
    out += i;                                                                                \
    [[maybe_unused]] const uint64_t al = in[i].a, bl = in[i].b, cl = in[i].c;                \
    [[maybe_unused]] const uint32_t a = uint32_t(al), b = uint32_t(bl), c = uint32_t(cl);    \
    [[maybe_unused]] const uint32_t e = uint32_t(cl >> 32);                                  \
    [[maybe_unused]] const uint16_t ah = uint16_t(al), bh = uint16_t(bl), ch = uint16_t(cl); \
    CASES(CONFORMANCE_RUN)                                                                   \
  }                                                                                          \
  int main() { conformance::run(family, {CASES(CONFORMANCE_NAME)}, rows); }
