// Arithmetic in f16 and bf16, one or two in a register: NaN, saturation, relu, flushing, signs.
#include "conformance.h"

#define BOTH(X, op, rest)       \
  X(R_RR, op rest ".f16x2", "") \
  X(R_RR, op rest ".bf16x2", "")
#define F16(X, op)                 \
  BOTH(X, op, ".rn")               \
  X(R_RR, op ".ftz.f16x2", "")     \
  X(R_RR, op ".sat.f16x2", "")     \
  X(R_RR, op ".ftz.sat.f16x2", "") \
  X(H_HH, op ".f16", "")           \
  X(H_HH, op ".rn.bf16", "")
#define MIN_MAX(X, op)         \
  BOTH(X, op, "")              \
  BOTH(X, op, ".NaN")          \
  X(R_RR, op ".ftz.f16x2", "") \
  X(H_HH, op ".f16", "")       \
  X(H_HH, op ".NaN.bf16", "")

#define CASES(X)                        \
  F16(X, "add")                         \
  F16(X, "sub")                         \
  F16(X, "mul")                         \
  X(R_RRR, "fma.rn.f16x2", "")          \
  X(R_RRR, "fma.rn.ftz.f16x2", "")      \
  X(R_RRR, "fma.rn.sat.f16x2", "")      \
  X(R_RRR, "fma.rn.relu.f16x2", "")     \
  X(R_RRR, "fma.rn.ftz.relu.f16x2", "") \
  X(R_RRR, "fma.rn.bf16x2", "")         \
  X(R_RRR, "fma.rn.relu.bf16x2", "")    \
  X(H_HHH, "fma.rn.f16", "")            \
  X(H_HHH, "fma.rn.bf16", "")           \
  MIN_MAX(X, "min")                     \
  MIN_MAX(X, "max")                     \
  X(R_R, "neg.f16x2", "")               \
  X(R_R, "neg.bf16x2", "")              \
  X(R_R, "abs.f16x2", "")               \
  X(R_R, "abs.bf16x2", "")

namespace {

// Pairs of an f16 and a bf16 edge: each is read as both.
const std::vector<uint32_t> kEdges = {
    0x00000000, 0x80008000, 0x00010001, 0x80018001, 0x03ff007f, 0x04000080, 0x84008080, 0x3c003f80,
    0xbc00bf80, 0x3c013f81, 0x3bff3f7f, 0x40004000, 0x7bff7f7f, 0xfbffff7f, 0x7c007f80, 0xfc00ff80,
    0x7e007fc0, 0x7c017f81, 0xfe00ffc0, 0x7fffffff, 0x10003400, 0x64014b01, 0x3f803c00, 0x7f807c00,
    // How int4 codes become bf16 (tile/int4.cuh): subnormals times 2^127, and the zero points.
    0x000f000f, 0x00070009, 0x00f000f0, 0x00700090, 0x7f007f00, 0xbe00be00, 0xc000c000};

}  // namespace

CONFORMANCE_FAMILY(CASES, conformance::rows_of(conformance::words(kEdges), 500, 2))
