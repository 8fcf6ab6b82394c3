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
    0x00000000,  // 0
    0x80000000,  // -0
    0x00000001,  // 2^-149
    0x807fffff,  // -1.17549421e-38
    0x00800000,  // 2^-126
    0x80800000,  // -2^-126
    0x3f800000,  // 1
    0xbf800000,  // -1
    0x3f7fffff,  // 0.99999994
    0x3f800001,  // 1.00000012
    0x40000000,  // 2
    0x42fe0000,  // 127
    0x43000000,  // 128
    0xc3150000,  // -149
    0xc2fc0000,  // -126
    0x40c90fdb,  // 6.28318548
    0x7e800000,  // 2^126
    0x7e800001,  // 8.50706019e+37
    0x7f000000,  // 2^127
    0x7f7fffff,  // 3.40282347e+38
    0xff7fffff,  // -3.40282347e+38
    0x7f800000,  // infinity
    0xff800000,  // -infinity
    0x7fc00000,  // NaN
};

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
