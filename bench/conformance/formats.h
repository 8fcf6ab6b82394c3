// Operands of matrix products: values as bits of each format, packed into words.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <bit>

#include "conformance.h"

namespace conformance {

enum class Format { f32, tf32, f16, bf16, e4m3, e5m2, s8, u8, s32 };

constexpr int bits_of(Format format) {
  switch (format) {
    case Format::f16:
    case Format::bf16:
      return 16;
    case Format::e4m3:
    case Format::e5m2:
    case Format::s8:
    case Format::u8:
      return 8;
    default:
      return 32;
  }
}

inline uint32_t encode(Format format, float x) {
  switch (format) {
    case Format::f32:
      return std::bit_cast<uint32_t>(x);
    case Format::tf32:
      return std::bit_cast<uint32_t>(x) & 0xffffe000u;
    case Format::f16:
      return __half_as_ushort(__float2half_rn(x));
    case Format::bf16:
      return __bfloat16_as_ushort(__float2bfloat16_rn(x));
    case Format::e4m3:
      return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    case Format::e5m2:
      return __nv_cvt_float_to_fp8(x, __NV_NOSAT, __NV_E5M2);
    case Format::s8:
      return static_cast<uint8_t>(static_cast<int>(x));
    case Format::u8:
      return static_cast<uint8_t>(std::abs(static_cast<int>(x)));
    case Format::s32:
      return static_cast<uint32_t>(static_cast<int>(x));
  }
  return 0;
}

// What a problem is made of.
//   exact    small numbers, whose sums no order and no accumulator rounds
//   special  some of them infinite or NaN
//   tiny     zeros and the smallest subnormals, whose sums are exact as well
//   sums     mixed magnitudes: what is lost depends on how the hardware adds
enum class Kind { exact, special, tiny, sums };

inline float value_of(Kind kind, Random& draw) {
  static const std::vector<float> kExact = {0, -0.f, 1, -1, 2, -2, 3, -3, 4, -4, 1, -1};
  const float infinity = HUGE_VALF;
  if (kind == Kind::special && draw.below(24) == 0)
    return draw.one_of<float>({infinity, -infinity, infinity - infinity});
  if (kind == Kind::tiny) return draw.one_of<float>({0, 0, 1, -1, 2});
  if (kind != Kind::sums) return draw.one_of(kExact);
  const float magnitude = std::ldexp(1 + draw.below(1 << 20) * 0x1p-20f, int(draw.below(8)) - 4);
  return draw.below(2) ? magnitude : -magnitude;
}

// One element of a matrix. Among tiny ones A is subnormal: its smallest bits stand for one.
inline uint32_t element(Format format, Kind kind, bool of_a, Random& draw) {
  if (format == Format::s8 || format == Format::u8) return draw.next() & 0xff;
  if (format == Format::s32)
    return kind == Kind::special ? 0x7fffff00u ^ (draw.below(2) ? 0 : ~0u) : uint32_t(draw.next());
  float x = value_of(kind, draw);
  if (format == Format::e4m3 && std::isinf(x)) x = NAN;  // it has no infinity
  if (kind != Kind::tiny || !of_a) return encode(format, x);
  const uint32_t sign = x < 0 ? 1u << (bits_of(format) - 1) : 0;
  return sign | uint32_t(std::abs(x)) << (format == Format::tf32 ? 13 : 0);
}

inline uint32_t packed(Format format, Kind kind, bool of_a, Random& draw) {
  uint32_t word = 0;
  for (int at = 0; at < 32; at += bits_of(format)) word |= element(format, kind, of_a, draw) << at;
  return word;
}

}  // namespace conformance
