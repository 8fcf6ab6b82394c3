// The approximations. Their bits are the machine's own: they are held to the documented errors.
#include "conformance.h"

#define FLUSHED(X, shape, op) \
  X(shape, op ".f32", "")     \
  X(shape, op ".ftz.f32", "")
#define CASES(X)                      \
  FLUSHED(X, R_R, "ex2.approx")       \
  FLUSHED(X, R_R, "lg2.approx")       \
  FLUSHED(X, R_R, "rcp.approx")       \
  FLUSHED(X, R_R, "rsqrt.approx")     \
  FLUSHED(X, R_R, "sqrt.approx")      \
  FLUSHED(X, R_R, "sin.approx")       \
  FLUSHED(X, R_R, "cos.approx")       \
  X(R_R, "tanh.approx.f32", "")       \
  FLUSHED(X, R_RR, "div.approx")      \
  FLUSHED(X, R_RR, "div.full")        \
  X(R_R, "ex2.approx.f16x2", "")      \
  X(R_R, "ex2.approx.ftz.bf16x2", "") \
  X(R_R, "tanh.approx.f16x2", "")     \
  X(R_R, "tanh.approx.bf16x2", "")

namespace {

const std::vector<uint32_t> kEdges = {
    0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x80800000, 0x3f800000, 0xbf800000,
    0x3f7fffff, 0x3f800001, 0x40000000, 0x42fe0000, 0x43000000, 0xc3150000, 0xc2fc0000, 0x40c90fdb,
    0x7e800000, 0x7e800001, 0x7f000000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000};

std::vector<conformance::Row> rows() {
  std::vector<conformance::Row> rows = conformance::rows_of(conformance::words(kEdges), 400, 5);
  conformance::Random draw{6};
  // Operands of common size: exponents of 2^-16 to 2^7.
  for (int i = 0; i < 2000; ++i) {
    auto one = [&] { return uint32_t(draw.next() & 0x807fffff) | (111 + draw.below(24)) << 23; };
    const uint32_t a = one(), b = one();
    rows.push_back({a, b, 0});
  }
  return rows;
}

}  // namespace

CONFORMANCE_FAMILY(CASES, rows())
