// f32 and f64 arithmetic: rounding, flushing, saturation, minima and maxima, comparisons.
#include "conformance.h"

#define FLUSHED(X, shape, op, rest) \
  X(shape, op rest ".f32", "")      \
  X(shape, op rest ".ftz.f32", "")
#define ALL_ROUNDED(X, shape, op)    \
  ROUNDED(X, shape, op, ".f32")      \
  ROUNDED(X, shape, op, ".ftz.f32")  \
  X(shape, op ".rn.ftz.sat.f32", "") \
  X(shape, op ".rz.sat.f32", "")
#define MIN_MAX(X, op)               \
  FLUSHED(X, R_RR, op, "")           \
  X(R_RR, op ".NaN.f32", "")         \
  X(R_RR, op ".ftz.NaN.f32", "")     \
  X(R_RR, op ".xorsign.abs.f32", "") \
  X(R_RR, op ".NaN.xorsign.abs.f32", "")
#define COMPARED(X, op)          \
  X(P_RR, "setp." op ".f32", "") \
  X(P_RR, "setp." op ".ftz.f32", "")
#define DOUBLE(X)                  \
  ROUNDED(X, L_LL, "add", ".f64")  \
  ROUNDED(X, L_LL, "mul", ".f64")  \
  ROUNDED(X, L_LLL, "fma", ".f64") \
  X(L_LL, "div.rn.f64", "")        \
  X(L_L, "sqrt.rn.f64", "")        \
  X(L_LL, "min.f64", "")           \
  X(L_LL, "max.f64", "")

#define CASES(X)                      \
  ALL_ROUNDED(X, R_RR, "add")         \
  ALL_ROUNDED(X, R_RR, "sub")         \
  ALL_ROUNDED(X, R_RR, "mul")         \
  ALL_ROUNDED(X, R_RRR, "fma")        \
  ROUNDED(X, R_RR, "div", ".f32")     \
  ROUNDED(X, R_RR, "div", ".ftz.f32") \
  ROUNDED(X, R_R, "rcp", ".f32")      \
  ROUNDED(X, R_R, "rcp", ".ftz.f32")  \
  ROUNDED(X, R_R, "sqrt", ".f32")     \
  ROUNDED(X, R_R, "sqrt", ".ftz.f32") \
  MIN_MAX(X, "min")                   \
  MIN_MAX(X, "max")                   \
  FLUSHED(X, R_R, "neg", "")          \
  FLUSHED(X, R_R, "abs", "")          \
  X(R_RR, "copysign.f32", "")         \
  COMPARED(X, "eq")                   \
  COMPARED(X, "neu")                  \
  COMPARED(X, "lt")                   \
  COMPARED(X, "geu")                  \
  COMPARED(X, "nan")                  \
  X(P_R, "testp.finite.f32", "")      \
  X(P_R, "testp.infinite.f32", "")    \
  X(P_R, "testp.normal.f32", "")      \
  X(P_R, "testp.subnormal.f32", "")   \
  DOUBLE(X)

namespace {

// Zeros, subnormals, around one and two, large and largest, infinities and NaN.
const std::vector<uint32_t> kEdges = {
    0x00000000,  // 0
    0x80000000,  // -0
    0x00000001,  // 2^-149
    0x80000001,  // -2^-149
    0x007fffff,  // 1.17549421e-38
    0x00800000,  // 2^-126
    0x80800000,  // -2^-126
    0x00800001,  // 1.17549449e-38
    0x33800000,  // 2^-24
    0x34000000,  // 2^-23
    0x3f7fffff,  // 0.99999994
    0x3f800000,  // 1
    0xbf800000,  // -1
    0x3f800001,  // 1.00000012
    0x40400000,  // 3
    0x4b000001,  // 8388609
    0x7e800000,  // 2^126
    0x7f7fffff,  // 3.40282347e+38
    0xff7fffff,  // -3.40282347e+38
    0x7f800000,  // infinity
    0xff800000,  // -infinity
    0x7fc00000,  // NaN
    0x7f800001,  // NaN
    0xffc12345,  // NaN
};

}  // namespace

CONFORMANCE_FAMILY(CASES, conformance::rows_of(conformance::words(kEdges), 300, 1))
