// Number formats and scalar arithmetic as the PTX ISA defines them.
//
// Everything here is a pure function of its arguments. Compile with -ffp-contract=off: a fused
// multiply-add where the kernel asked for mul and add gives other bits than the GPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace l4k::emu {

// Floating-point rounding of cvt, add, mul, fma, div, sqrt: to nearest even, towards zero, minus
// infinity, plus infinity; rna (ties away from zero) exists for cvt to tf32 only.
enum class Round : uint8_t { rn, rz, rm, rp, rna };

// Storage formats. f32 and f64 are here so that one table drives cvt.
enum class Format : uint8_t { f64, f32, tf32, f16, bf16, e4m3, e5m2 };

struct CvtOptions {
  Round round = Round::rn;
  bool ftz = false;        // flush subnormal f32 inputs and results to signed zero
  bool sat = false;        // .sat: clamp to [0, 1], NaN becomes +0
  bool satfinite = false;  // clamp to +-MAX_NORM instead of infinity (always so for e4m3 and e5m2)
  bool relu = false;       // negative results become +0; NaN becomes the canonical NaN
};

inline uint32_t bits(float x) { return std::bit_cast<uint32_t>(x); }
inline float from_bits(uint32_t x) { return std::bit_cast<float>(x); }

inline constexpr uint32_t kNanF32 = 0x7fffffffu;  // what arithmetic on the GPU returns for NaN
inline constexpr uint16_t kNanF16 = 0x7fffu;
inline constexpr uint16_t kNanBf16 = 0x7fffu;
inline constexpr uint8_t kNanFp8 = 0x7fu;  // both e4m3 and e5m2

inline float canonical(float x) { return x == x ? x : from_bits(kNanF32); }
inline float flush(float x) {
  uint32_t u = bits(x);
  return (u & 0x7f800000u) ? x : from_bits(u & 0x80000000u);
}
// .sat: [0, 1], NaN and -0 to +0.
inline float saturate(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }

// ---- exact widening ---------------------------------------------------------------------------
inline float bf16_to_float(uint16_t x) { return from_bits(uint32_t{x} << 16); }
float f16_to_float(uint16_t x);  // NaN payloads survive as they do in the hardware's widening
float e4m3_to_float(uint8_t x);  // 0x7f and 0xff are NaN, there is no infinity
float e5m2_to_float(uint8_t x);
// cvt.rn.f16x2.e4m3x2 and cvt.rn.f16x2.e5m2x2: low byte to low half.
uint32_t e4m3x2_to_f16x2(uint16_t x, bool relu = false);
uint32_t e5m2x2_to_f16x2(uint16_t x, bool relu = false);
void widen_f16(const uint16_t* in, float* out, int count);
void widen_bf16(const uint16_t* in, float* out, int count);

// ---- narrowing --------------------------------------------------------------------------------
uint16_t float_to_bf16(float x, CvtOptions o = {});
uint16_t float_to_f16(float x, CvtOptions o = {});
uint32_t float_to_tf32(float x, CvtOptions o = {});  // low 13 bits zero
uint8_t float_to_e4m3(float x, CvtOptions o = {});   // satfinite whatever `o` says
uint8_t float_to_e5m2(float x, CvtOptions o = {});   // satfinite whatever `o` says
uint8_t f16_to_e4m3(uint16_t x, bool relu = false);
uint8_t f16_to_e5m2(uint16_t x, bool relu = false);
// cvt.<to>.f32 d, a, b: the packed forms put `a` into the upper half.
uint32_t pack_bf16x2(float a, float b, CvtOptions o = {});
uint32_t pack_f16x2(float a, float b, CvtOptions o = {});
uint16_t pack_e4m3x2(float a, float b, CvtOptions o = {});
uint16_t pack_e5m2x2(float a, float b, CvtOptions o = {});

// Any float format to any other (cvt.f32.f64, cvt.bf16.f16, ...): `x` and the result hold the
// format's bits, right aligned. Same-format cvt with rounding is round_to_integral below.
uint64_t cvt_float(Format to, Format from, uint64_t x, CvtOptions o = {});

// cvt.rni/.rzi/.rmi/.rpi between equal float types: round to an integral value.
float round_to_integral(float x, Round how, bool ftz = false, bool sat = false);
double round_to_integral(double x, Round how);

// ---- integers ---------------------------------------------------------------------------------
// Float to integer of `width` bits (8..64), rni/rzi/rmi/rpi given as rn/rz/rm/rp. Out of range
// clamps. NaN gives 0, or 1 << (width - 1) when the source is f64 or the destination has 64 bits.
// The result is sign- or zero-extended to 64 bits.
uint64_t float_to_int(Format from, uint64_t x, int width, bool is_signed, Round how,
                      bool ftz = false);
// 64-bit (already extended) integer to float.
uint64_t int_to_float(Format to, uint64_t x, bool is_signed, CvtOptions o = {});
// Integer to integer: truncate or extend; with `sat` clamp to the destination's range.
uint64_t int_to_int(uint64_t x, bool from_signed, int to_width, bool to_signed, bool sat);

// ---- f32 arithmetic ---------------------------------------------------------------------------
struct F32Options {
  Round round = Round::rn;
  bool ftz = false, sat = false;
};
float f32_add(float a, float b, F32Options o = {});
float f32_sub(float a, float b, F32Options o = {});
float f32_mul(float a, float b, F32Options o = {});
float f32_fma(float a, float b, float c, F32Options o = {});
float f32_div(float a, float b, F32Options o = {});  // div.rn/.rz/.rm/.rp
float f32_rcp(float a, F32Options o = {});           // rcp.rn/...
float f32_sqrt(float a, F32Options o = {});          // sqrt.rn/...
// One NaN gives the other operand (min.NaN/max.NaN: NaN); -0 < +0.
float f32_min(float a, float b, bool ftz = false, bool nan = false);
float f32_max(float a, float b, bool ftz = false, bool nan = false);

// Arrays of lanes, round to nearest even: the vectorised path of the interpreter. In place is fine.
void f32_add_n(const float* a, const float* b, float* d, int count, bool ftz);
void f32_mul_n(const float* a, const float* b, float* d, int count, bool ftz);
void f32_fma_n(const float* a, const float* b, const float* c, float* d, int count, bool ftz);

// ---- f16 and bf16 arithmetic (one half; apply twice for the x2 forms) -------------------------
enum class HalfOp : uint8_t { add, sub, mul, fma, min, max };
struct HalfOptions {
  bool ftz = false, sat = false, relu = false;  // relu: fma only
  bool nan = false;                             // min and max: propagate NaN
};
// `format` is Format::f16 or Format::bf16; `c` is read by fma only. One rounding, to nearest even.
uint16_t half_op(Format format, HalfOp op, uint16_t a, uint16_t b, uint16_t c = 0,
                 HalfOptions o = {});

// ---- approximations ---------------------------------------------------------------------------
// The correctly rounded result, moved by a pseudo-random part of the error that the PTX ISA
// documents: a pure function of (seed, operation, operand bits). Seed 0 does not move it. Special
// operands (zeros, infinities, NaN) give the documented results for every seed, and results that
// are exact powers of two (lg2: integers) stay exact, as the hardware's tables make them.
enum class Approx : uint8_t { ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh };
float approx(Approx op, float x, bool ftz, uint64_t seed);
void approx_n(Approx op, const float* in, float* out, int count, bool ftz, uint64_t seed);
// div.approx.f32 (2 ulp; 0 or NaN when 2^126 < |b| < 2^128) and div.full.f32 (2 ulp everywhere).
float approx_div(float a, float b, bool full, bool ftz, uint64_t seed);
// ex2.approx and tanh.approx on one f16 or bf16.
uint16_t approx_half(Approx op, Format format, uint16_t x, uint64_t seed);

}  // namespace l4k::emu
