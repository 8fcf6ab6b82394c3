// Integers and bits: products and their halves, carries, shifts past the width, fields, permutations.
#include "conformance.h"

#define SIGNED(X, shape, op) \
  X(shape, op ".s32", "")    \
  X(shape, op ".u32", "")
#define LONG(X, shape, op) \
  X(shape, op ".s64", "")  \
  X(shape, op ".u64", "")
#define SHORT(X, shape, op) \
  X(shape, op ".s16", "")   \
  X(shape, op ".u16", "")
#define DOT(X, op)            \
  X(R_RRR, op ".s32.s32", "") \
  X(R_RRR, op ".s32.u32", "") \
  X(R_RRR, op ".u32.s32", "") \
  X(R_RRR, op ".u32.u32", "")
#define SHIFTS(X)                 \
  X(R_RR, "shl.b32", "")          \
  X(R_RR, "shr.u32", "")          \
  X(R_RR, "shr.s32", "")          \
  X(L_LR, "shl.b64", "")          \
  X(L_LR, "shr.u64", "")          \
  X(L_LR, "shr.s64", "")          \
  X(R_RRR, "shf.l.wrap.b32", "")  \
  X(R_RRR, "shf.l.clamp.b32", "") \
  X(R_RRR, "shf.r.wrap.b32", "")  \
  X(R_RRR, "shf.r.clamp.b32", "")
#define FIELDS(X)                \
  SIGNED(X, R_RRR, "bfe")        \
  LONG(X, L_LRR, "bfe")          \
  X(R_RRRR, "bfi.b32", "")       \
  X(L_LLRR, "bfi.b64", "")       \
  X(R_RRR, "prmt.b32", "")       \
  X(R_RRR, "prmt.b32.f4e", "")   \
  X(R_RRR, "prmt.b32.b4e", "")   \
  X(R_RRR, "prmt.b32.rc8", "")   \
  X(R_RRR, "prmt.b32.ecl", "")   \
  X(R_RRR, "prmt.b32.ecr", "")   \
  X(R_RRR, "prmt.b32.rc16", "")  \
  X(R_RRR, "lop3.b32", ", 0x96") \
  X(R_RRR, "lop3.b32", ", 0xe8") \
  X(R_RRR, "lop3.b32", ", 0x1d")
#define BITS(X)                    \
  X(R_R, "popc.b32", "")           \
  X(R_L, "popc.b64", "")           \
  X(R_R, "clz.b32", "")            \
  X(R_L, "clz.b64", "")            \
  X(R_R, "brev.b32", "")           \
  X(L_L, "brev.b64", "")           \
  X(R_R, "not.b32", "")            \
  X(R_R, "cnot.b32", "")           \
  SIGNED(X, R_R, "bfind")          \
  SIGNED(X, R_R, "bfind.shiftamt") \
  LONG(X, R_L, "bfind")

#define SATURATED(X)              \
  X(R_RR, "add.sat.s32", "")      \
  X(R_RR, "sub.sat.s32", "")      \
  X(R_RRR, "mad.hi.sat.s32", "")  \
  SIGNED(X, R_RR, "mul24.lo")     \
  SIGNED(X, R_RR, "mul24.hi")     \
  SIGNED(X, R_RRR, "mad24.lo")    \
  X(R_RR, "bmsk.clamp.b32", "")   \
  X(R_RR, "bmsk.wrap.b32", "")    \
  X(R_RR, "szext.clamp.s32", "")  \
  X(R_RR, "szext.wrap.u32", "")   \
  X(R_RRR, "fns.b32", "")         \
  X(R_RRR, "dp2a.lo.s32.s32", "") \
  X(R_RRR, "dp2a.hi.u32.u32", "") \
  X(R_RR, "min.s16x2", "")        \
  X(R_RR, "max.u16x2", "")        \
  X(R_RR, "add.s16x2", "")

#define CASES(X)               \
  X(R_RR, "add.u32", "")       \
  X(L_LL, "sub.u64", "")       \
  X(R_RR, "mul.lo.u32", "")    \
  SIGNED(X, R_RR, "mul.hi")    \
  SIGNED(X, L_RR, "mul.wide")  \
  SIGNED(X, R_RRR, "mad.hi")   \
  X(R_RRR, "mad.lo.s32", "")   \
  SIGNED(X, L_RRL, "mad.wide") \
  LONG(X, L_LL, "mul.hi")      \
  LONG(X, L_LLL, "mad.hi")     \
  X(L_LLL, "mad.lo.u64", "")   \
  SHORT(X, H_HH, "mul.hi")     \
  SHORT(X, H_HH, "mul.lo")     \
  SHORT(X, H_HHH, "mad.lo")    \
  SIGNED(X, R_RRR, "sad")      \
  SHORT(X, H_HHH, "sad")       \
  SIGNED(X, R_RR, "min")       \
  SIGNED(X, R_RR, "max")       \
  LONG(X, L_LL, "min")         \
  X(R_RR, "max.relu.s32", "")  \
  X(R_R, "abs.s32", "")        \
  X(R_R, "neg.s32", "")        \
  DOT(X, "dp4a")               \
  SHIFTS(X)                    \
  FIELDS(X)                    \
  BITS(X)                      \
  SATURATED(X)

namespace {

const std::vector<uint32_t> kEdges = {
    0x00000000, 0x00000001, 0xffffffff, 0x7fffffff, 0x80000000, 0x80000001, 0x00000002, 0x0000001f,
    0x00000020, 0x00000021, 0x0000003f, 0x00000040, 0x000000ff, 0x00000100, 0x00008000, 0x00007fff,
    0x0000ffff, 0x00010000, 0x00ffffff, 0x00800000, 0xff800000, 0x7f80807f, 0xfedcba98, 0x00000010};

}  // namespace

CONFORMANCE_FAMILY(CASES, conformance::rows_of(conformance::words(kEdges), 300, 4))
