// cvt: between float formats, with every rounding and saturation, and between floats and integers.
#include "conformance.h"

#define TO_INTEGER(X, type)              \
  X(R_R, "cvt.rni." type ".f32", "")     \
  X(R_R, "cvt.rzi." type ".f32", "")     \
  X(R_R, "cvt.rmi.ftz." type ".f32", "") \
  X(R_R, "cvt.rpi." type ".f32", "")     \
  X(R_H, "cvt.rni." type ".f16", "")     \
  X(R_L, "cvt.rzi." type ".f64", "")
#define TO_LONG(X, type)                 \
  X(L_R, "cvt.rzi." type ".f32", "")     \
  X(L_R, "cvt.rni.ftz." type ".f32", "") \
  X(L_H, "cvt.rmi." type ".f16", "")     \
  X(L_L, "cvt.rni." type ".f64", "")
#define FROM_INTEGER(X, type)          \
  ROUNDED(X, R_R, "cvt", ".f32." type) \
  ROUNDED(X, H_R, "cvt", ".f16." type) \
  X(H_R, "cvt.rn.bf16." type, "")      \
  X(L_R, "cvt.rn.f64." type, "")
#define FROM_LONG(X, type)             \
  ROUNDED(X, R_L, "cvt", ".f32." type) \
  ROUNDED(X, L_L, "cvt", ".f64." type) \
  X(H_L, "cvt.rn.f16." type, "")
#define NARROW(X, type)                  \
  X(H_R, "cvt.rn." type ".f32", "")      \
  X(H_R, "cvt.rz." type ".f32", "")      \
  X(H_R, "cvt.rn.relu." type ".f32", "") \
  X(H_R, "cvt.rz.relu." type ".f32", "")
#define PACK(X, type)                     \
  X(R_RR, "cvt.rn." type ".f32", "")      \
  X(R_RR, "cvt.rz." type ".f32", "")      \
  X(R_RR, "cvt.rn.relu." type ".f32", "") \
  X(R_RR, "cvt.rz.relu." type ".f32", "")
#define FP8(X, type)                                   \
  X(H_RR, "cvt.rn.satfinite." type "x2.f32", "")       \
  X(H_RR, "cvt.rn.satfinite.relu." type "x2.f32", "")  \
  X(H_R, "cvt.rn.satfinite." type "x2.f16x2", "")      \
  X(H_R, "cvt.rn.satfinite.relu." type "x2.f16x2", "") \
  X(R_H, "cvt.rn.f16x2." type "x2", "")                \
  X(R_H, "cvt.rn.relu.f16x2." type "x2", "")
#define INTEGRAL(X, how)                \
  X(R_R, "cvt." how ".f32.f32", "")     \
  X(R_R, "cvt." how ".ftz.f32.f32", "") \
  X(H_H, "cvt." how ".f16.f16", "")     \
  X(L_L, "cvt." how ".f64.f64", "")

#define CASES(X)                     \
  NARROW(X, "f16")                   \
  NARROW(X, "bf16")                  \
  X(H_R, "cvt.rm.f16.f32", "")       \
  X(H_R, "cvt.rp.f16.f32", "")       \
  X(H_R, "cvt.rn.ftz.f16.f32", "")   \
  X(H_R, "cvt.rn.sat.f16.f32", "")   \
  PACK(X, "f16x2")                   \
  PACK(X, "bf16x2")                  \
  X(R_R, "cvt.rna.tf32.f32", "")     \
  X(R_R, "cvt.rn.tf32.f32", "")      \
  X(R_R, "cvt.rz.tf32.f32", "")      \
  X(R_R, "cvt.rn.relu.tf32.f32", "") \
  X(R_R, "cvt.rz.relu.tf32.f32", "") \
  FP8(X, "e4m3")                     \
  FP8(X, "e5m2")                     \
  X(R_H, "cvt.f32.f16", "")          \
  X(R_H, "cvt.ftz.f32.f16", "")      \
  X(R_H, "cvt.sat.f32.f16", "")      \
  X(R_H, "cvt.f32.bf16", "")         \
  X(L_R, "cvt.f64.f32", "")          \
  X(L_R, "cvt.ftz.f64.f32", "")      \
  X(L_H, "cvt.f64.f16", "")          \
  ROUNDED(X, R_L, "cvt", ".f32.f64") \
  X(R_L, "cvt.rn.ftz.f32.f64", "")   \
  X(R_L, "cvt.rn.sat.f32.f64", "")   \
  ROUNDED(X, H_L, "cvt", ".f16.f64") \
  X(R_R, "cvt.sat.f32.f32", "")      \
  X(R_R, "cvt.ftz.sat.f32.f32", "")  \
  INTEGRAL(X, "rni")                 \
  INTEGRAL(X, "rzi")                 \
  INTEGRAL(X, "rmi")                 \
  INTEGRAL(X, "rpi")                 \
  TO_INTEGER(X, "s32")               \
  TO_INTEGER(X, "u32")               \
  TO_INTEGER(X, "s16")               \
  TO_INTEGER(X, "u8")                \
  TO_LONG(X, "s64")                  \
  TO_LONG(X, "u64")                  \
  FROM_INTEGER(X, "s32")             \
  FROM_INTEGER(X, "u32")             \
  FROM_LONG(X, "s64")                \
  FROM_LONG(X, "u64")                \
  X(R_R, "cvt.sat.s8.s32", "")       \
  X(R_R, "cvt.sat.u8.s32", "")       \
  X(R_R, "cvt.sat.s16.u32", "")      \
  X(R_L, "cvt.sat.s32.s64", "")      \
  X(R_L, "cvt.sat.u32.s64", "")      \
  X(L_R, "cvt.sat.u64.s32", "")      \
  X(R_R, "cvt.s32.s8", "")           \
  X(L_R, "cvt.s64.s32", "")

namespace {

// Around the ends and the ties of f16, bf16, tf32, e4m3, e5m2 and the integers; the low half is an
// f16 edge in several.
const std::vector<uint32_t> kNarrow = {
    0x00000000,  // 0
    0x80000000,  // -0
    0x00000001,  // 2^-149
    0x807fffff,  // -1.17549421e-38
    0x00800000,  // 2^-126
    0x00007c00,  // 4.44828185e-41
    0x0000fc01,  // 9.04019678e-41
    0x00007bff,  // 4.44814172e-41
    0x3f800000,  // 1
    0xbf800000,  // -1
    0x3f000000,  // 0.5
    0x3fc00000,  // 1.5
    0xc0200000,  // -2.5
    0x3f808000,  // 1.00390625
    0x3f818000,  // 1.01171875
    0x3f801000,  // 1.00048828
    0x3f803000,  // 1.00146484
    0x3f800fff,  // 1.00048816
    0x3f880000,  // 1.0625
    0x3f980000,  // 1.1875
    0x3fa00000,  // 1.25
    0x477fe000,  // 65504
    0x477fefff,  // 65519.9961
    0x477ff000,  // 65520
    0xc7800000,  // -2^16
    0x387fc000,  // 6.09755516e-05
    0x33800000,  // 2^-24
    0x33000000,  // 2^-25
    0x33000001,  // 2.98023259e-08
    0x43e00000,  // 448
    0x43e80000,  // 464
    0x43e80001,  // 464.000031
    0x43f00000,  // 480
    0x3c800000,  // 2^-6
    0x3b000000,  // 2^-9
    0x3a800000,  // 2^-10
    0x3a800001,  // 0.000976562616
    0x37800000,  // 2^-16
    0x37000000,  // 2^-17
    0x47600000,  // 57344
    0x47680000,  // 59392
    0x4effffff,  // 2.14748352e+09
    0x4f000000,  // 2^31
    0xcf000000,  // -2^31
    0xcf000001,  // -2.1474839e+09
    0x4f7fffff,  // 4.29496704e+09
    0x4f800000,  // 2^32
    0x5f000000,  // 2^63
    0xdf000000,  // -2^63
    0x5f800000,  // 2^64
    0x43000000,  // 128
    0xc3000001,  // -128.000015
    0x46fffe00,  // 32767
    0x7f7fffff,  // 3.40282347e+38
    0xff7fffff,  // -3.40282347e+38
    0x7f7f8000,  // 3.39617753e+38
    0x7f800000,  // infinity
    0xff800000,  // -infinity
    0x7fc00000,  // NaN
    0x7f800001,  // NaN
    0xffc00400,  // NaN
    0x4b000001,  // 8388609
    0x4a800001,  // 4194304.5
    0x00007f80,  // 4.57383819e-41
};
// For operands of 64 bits.
const std::vector<uint64_t> kWide = {0,
                                     0x8000000000000000,
                                     1,
                                     0x3ff0000000000000,
                                     0xbfe0000000000000,
                                     0x3ff0000010000000,
                                     0x3ff0000030000000,
                                     0x3ff0000010000001,
                                     0x3ff0020000000000,
                                     0x36a0000000000000,
                                     0x3690000000000000,
                                     0x3690000000000001,
                                     0x380fffffe0000000,
                                     0x380ffffff0000000,
                                     0x47efffffe0000000,
                                     0x47efffffefffffff,
                                     0x47effffff0000000,
                                     0x40effc0000000000,
                                     0x40effe0000000000,
                                     0x3e60000000000000,
                                     0x41dfffffffc00000,
                                     0x41e0000000000000,
                                     0xc1e0000000200000,
                                     0x41efffffffe00000,
                                     0x43e0000000000000,
                                     0xc3e0000000000000,
                                     0x43f0000000000000,
                                     0x43dfffffffffffff,
                                     0x7fefffffffffffff,
                                     0x7ff0000000000000,
                                     0xfff0000000000000,
                                     0x7ff8000000000000,
                                     0x7ff0000000000001,
                                     0x7fffffffffffffff,
                                     0xffffffffffffffff,
                                     0x0020000000000001,
                                     0x0000000100000001,
                                     0x4008000000000000,
                                     0xc004000000000000};

// An edge or random bits in each operand: `a` is read by its low 32 or 16 bits, `b` by all 64 when
// the operand has them.
std::vector<conformance::Row> rows() {
  conformance::Random draw{3};
  std::vector<conformance::Row> rows;
  for (size_t i = 0; i < 2 * kNarrow.size(); ++i) {
    const uint32_t b =
        i % 2 ? kNarrow[(i * 7 + 1) % kNarrow.size()] : uint32_t(kWide[i % kWide.size()]);
    rows.push_back({kNarrow[i / 2], i % 2 ? b : kWide[i / 2 % kWide.size()], 0});
  }
  for (int i = 0; i < 640; ++i) {
    // A float whose exponent is near the formats' ends more often than random bits have it.
    const uint32_t near = uint32_t(draw.next() & 0x807fffff) | (0x60 + draw.below(0x40)) << 23;
    const uint64_t wide = (draw.next() & 0x800fffffffffffff) | uint64_t{0x3e0 + draw.below(0x70)}
                                                                   << 52;
    const uint64_t bits = draw.next();
    rows.push_back(
        {i % 3 ? near : uint32_t(draw.next()), i % 2 ? wide : bits >> draw.below(64), 0});
  }
  return rows;
}

}  // namespace

CONFORMANCE_FAMILY(CASES, rows())
