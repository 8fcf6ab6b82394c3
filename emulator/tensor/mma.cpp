#include "tensor/mma.h"

#include <immintrin.h>

#include <cstring>

#include "tensor/multiply.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

constexpr int kMaxN = 256;
constexpr int kMaxK = 32;

__m256 canonical(__m256 x) {
  __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(kNanF32)));
  return _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

// B is taken in panels of 16 columns (the last may have 8), K outermost inside a panel: what the
// inner loops read is contiguous and stays in the first-level cache, whatever n is.
constexpr int kPanel = 16;

// Four rows by `groups` times eight columns, held in registers over K.
template <int groups>
void block_exact(const float* a, const float* panel, int n, int k, float* acc) {
  __m256 sum[4][groups];
  for (int i = 0; i < 4; ++i)
    for (int g = 0; g < groups; ++g) sum[i][g] = _mm256_loadu_ps(acc + i * n + g * 8);
  for (int p = 0; p < k; ++p) {
    __m256 b[groups];
    for (int g = 0; g < groups; ++g) b[g] = _mm256_load_ps(panel + (p * groups + g) * 8);
    for (int i = 0; i < 4; ++i) {
      __m256 x = _mm256_broadcast_ss(a + i * k + p);
      for (int g = 0; g < groups; ++g) sum[i][g] = _mm256_fmadd_ps(x, b[g], sum[i][g]);
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int g = 0; g < groups; ++g) _mm256_storeu_ps(acc + i * n + g * 8, canonical(sum[i][g]));
}

// Reduced precision: every term is cut to a multiple of 2^(e - 13), where e is the exponent of the
// largest; the cut terms add up exactly (33 * 2^14 < 2^24). Four rows by eight columns.
void block_aligned(const float* a, const float* b, int width, int n, int k, float* acc) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256 start[4], sum[4], inverse[4];
  __m256i most[4];  // magnitudes compare as integers, and NaN is the largest
  for (int i = 0; i < 4; ++i) {
    start[i] = _mm256_loadu_ps(acc + i * n);
    most[i] = _mm256_and_si256(_mm256_castps_si256(start[i]), magnitude);
  }
  for (int p = 0; p < k; ++p) {
    __m256 y = _mm256_load_ps(b + p * width);
    for (int i = 0; i < 4; ++i) {
      __m256 x = _mm256_mul_ps(_mm256_broadcast_ss(a + i * k + p), y);
      most[i] = _mm256_max_epi32(most[i], _mm256_and_si256(_mm256_castps_si256(x), magnitude));
    }
  }
  constexpr int toward_zero = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
  const __m256i cut = _mm256_set1_epi32(kHopperFp8Bits - 1);
  for (int i = 0; i < 4; ++i) {  // 2^(13 - e)
    __m256i exponent = _mm256_srli_epi32(most[i], 23);
    __m256i biased = _mm256_sub_epi32(_mm256_add_epi32(_mm256_set1_epi32(254), cut), exponent);
    inverse[i] = _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    sum[i] = _mm256_round_ps(_mm256_mul_ps(start[i], inverse[i]), toward_zero);
  }
  for (int p = 0; p < k; ++p) {
    __m256 y = _mm256_load_ps(b + p * width);
    for (int i = 0; i < 4; ++i) {
      __m256 x = _mm256_mul_ps(_mm256_broadcast_ss(a + i * k + p), y);
      x = _mm256_round_ps(_mm256_mul_ps(x, inverse[i]), toward_zero);
      sum[i] = _mm256_add_ps(sum[i], x);
    }
  }
  for (int i = 0; i < 4; ++i) {
    __m256i unit = _mm256_sub_epi32(_mm256_srli_epi32(most[i], 23), cut);
    __m256 result = _mm256_mul_ps(sum[i], _mm256_castsi256_ps(_mm256_slli_epi32(unit, 23)));
    // Below 2^-80 there is no product, only the accumulator.
    __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32((127 - 80) << 23), most[i]);
    result = _mm256_blendv_ps(result, start[i], _mm256_castsi256_ps(tiny));
    __m256i special = _mm256_cmpgt_epi32(most[i], _mm256_set1_epi32(0x7f7fffff));
    if (!_mm256_testz_si256(special, special)) {  // infinities and NaN: as they come
      __m256 plain = start[i];
      for (int p = 0; p < k; ++p)
        plain = _mm256_add_ps(plain, _mm256_mul_ps(_mm256_broadcast_ss(a + i * k + p),
                                                   _mm256_load_ps(b + p * width)));
      result = _mm256_blendv_ps(result, plain, _mm256_castsi256_ps(special));
    }
    _mm256_storeu_ps(acc + i * n, canonical(result));
  }
}

// Through f16, which has e5m2's exponent; e4m3's bias is smaller by 8 and its 0x7f is NaN.
template <bool is_e4m3>
void widen_fp8(const uint8_t* in, float* out, int count) {
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(kNanF32)));
  for (int i = 0; i < count; i += 8) {
    __m128i x = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(in + i)));
    if (!is_e4m3) {
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_slli_epi16(x, 8)));
      continue;
    }
    __m128i magnitude = _mm_and_si128(x, _mm_set1_epi16(0x7f));
    __m128i sign = _mm_slli_epi16(_mm_xor_si128(x, magnitude), 8);
    __m256 v = _mm256_cvtph_ps(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign));
    __m256i is_nan = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)));
    v = _mm256_mul_ps(v, _mm256_set1_ps(256.f));
    _mm256_storeu_ps(out + i, _mm256_blendv_ps(v, nan, _mm256_castsi256_ps(is_nan)));
  }
}

void widen(MmaType t, const uint8_t* packed, int rows, int k_bytes, float* out) {
  int bytes = rows * k_bytes;
  switch (t) {
    case MmaType::bf16:
      return widen_bf16(reinterpret_cast<const uint16_t*>(packed), out, bytes / 2);
    case MmaType::f16:
      return widen_f16(reinterpret_cast<const uint16_t*>(packed), out, bytes / 2);
    case MmaType::tf32:  // the hardware does not read the low 13 bits
      for (int i = 0; i < bytes / 4; ++i) {
        uint32_t u;
        std::memcpy(&u, packed + i * 4, 4);
        out[i] = from_bits(u & 0xffffe000u);
      }
      return;
    case MmaType::e4m3:
      return widen_fp8<true>(packed, out, bytes);
    case MmaType::e5m2:
      return widen_fp8<false>(packed, out, bytes);
    default:
      __builtin_unreachable();  // integers go through multiply_int
  }
}

// One panel: `width` (8 or 16) rows of B, in 8 x 8 blocks (k is a multiple of 8, or 4).
void make_panel(const float* in, int width, int k, float* panel) {
  for (int j = 0; j < width; j += 8) {
    float* out = panel + j;
    if (k % 8) {
      for (int i = 0; i < 8; ++i)
        for (int p = 0; p < k; ++p) out[p * width + i] = in[(j + i) * k + p];
      continue;
    }
    for (int p = 0; p < k; p += 8) {
      __m256 r[8], s[8];
      for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + (j + i) * k + p);
      for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
      }
      for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + (p + i) * width, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (p + i + 4) * width, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
      }
    }
  }
}

int16_t widen_int(MmaType t, uint8_t x) {
  return t == MmaType::s8 ? static_cast<int16_t>(static_cast<int8_t>(x)) : x;
}

}  // namespace

void multiply_float(MmaType ta, MmaType tb, int rows, int n, int k_bytes, const uint8_t* a,
                    const uint8_t* b, float* acc, bool negate, Fp8Accumulation fp8) {
  alignas(32) float wide_a[kWgmmaRows * kMaxK], wide_b[kPanel * kMaxK], panel[kPanel * kMaxK];
  int k = k_bytes / mma_bytes(ta);
  widen(ta, a, rows, k_bytes, wide_a);
  if (negate)
    for (int i = 0; i < rows * k; ++i) wide_a[i] = -wide_a[i];
  bool aligned = mma_is_fp8(ta) && fp8 == Fp8Accumulation::hopper;
  for (int j = 0; j < n; j += kPanel) {
    int width = n - j < kPanel ? n - j : kPanel;
    widen(tb, b + j * k_bytes, width, k_bytes, wide_b);
    make_panel(wide_b, width, k, panel);
    for (int i = 0; i < rows; i += 4) {
      const float* x = wide_a + i * k;
      float* out = acc + i * n + j;
      if (aligned) {
        for (int c = 0; c < width; c += 8) block_aligned(x, panel + c, width, n, k, out + c);
      } else if (width == kPanel) {
        block_exact<2>(x, panel, n, k, out);
      } else {
        block_exact<1>(x, panel, n, k, out);
      }
    }
  }
}

void multiply_int(MmaType ta, MmaType tb, int rows, int n, int k_bytes, const uint8_t* a,
                  const uint8_t* b, int32_t* acc, bool satfinite) {
  // Pairs along K, as vpmaddwd wants them: exact, since 2 * 255 * 255 fits.
  alignas(32) int16_t pairs[kMaxK / 2 * kMaxN * 2];
  int steps = k_bytes / 2;
  for (int j = 0; j < n; ++j)
    for (int p = 0; p < k_bytes; ++p)
      pairs[(p / 2 * n + j) * 2 + p % 2] = widen_int(tb, b[j * k_bytes + p]);
  for (int i = 0; i < rows; ++i) {
    int32_t row[kMaxK / 2];
    for (int p = 0; p < steps; ++p) {
      auto low = static_cast<uint16_t>(widen_int(ta, a[i * k_bytes + 2 * p]));
      auto high = static_cast<uint16_t>(widen_int(ta, a[i * k_bytes + 2 * p + 1]));
      row[p] = static_cast<int32_t>(uint32_t{high} << 16 | low);
    }
    for (int j = 0; j < n; j += 8) {
      __m256i sum = _mm256_setzero_si256();
      for (int p = 0; p < steps; ++p) {
        __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(pairs + (p * n + j) * 2));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_set1_epi32(row[p]), x));
      }
      auto* at = reinterpret_cast<__m256i*>(acc + i * n + j);
      __m256i old = _mm256_loadu_si256(at), result = _mm256_add_epi32(old, sum);
      if (satfinite) {
        // Overflow: the operands agree in sign and the result does not.
        __m256i wrong =
            _mm256_andnot_si256(_mm256_xor_si256(old, sum), _mm256_xor_si256(old, result));
        __m256i limit = _mm256_xor_si256(_mm256_srai_epi32(old, 31), _mm256_set1_epi32(0x7fffffff));
        result = _mm256_castps_si256(_mm256_blendv_ps(
            _mm256_castsi256_ps(result), _mm256_castsi256_ps(limit), _mm256_castsi256_ps(wrong)));
      }
      _mm256_storeu_si256(at, result);
    }
  }
}

void wgmma_tile(MmaType a, MmaType b, int n, const uint8_t* a_packed, const uint8_t* b_packed,
                float* acc, bool scale_d, int scale_a, int scale_b, Fp8Accumulation fp8) {
  if (!scale_d) std::memset(acc, 0, sizeof(float) * kWgmmaRows * n);
  multiply_float(a, b, kWgmmaRows, n, kWgmmaKBytes, a_packed, b_packed, acc, scale_a * scale_b < 0,
                 fp8);
}

void wgmma_tile_f16(MmaType a, MmaType b, int n, const uint8_t* a_packed, const uint8_t* b_packed,
                    uint16_t* acc, bool scale_d, int scale_a, int scale_b, Fp8Accumulation fp8) {
  alignas(32) float wide[kWgmmaRows * kMaxN];
  if (scale_d) widen_f16(acc, wide, kWgmmaRows * n);
  wgmma_tile(a, b, n, a_packed, b_packed, wide, scale_d, scale_a, scale_b, fp8);
  for (int i = 0; i < kWgmmaRows * n; ++i) acc[i] = float_to_f16(wide[i]);
}

void wgmma_tile_s32(MmaType a, MmaType b, int n, const uint8_t* a_packed, const uint8_t* b_packed,
                    int32_t* acc, bool scale_d, bool satfinite) {
  if (!scale_d) std::memset(acc, 0, sizeof(int32_t) * kWgmmaRows * n);
  multiply_int(a, b, kWgmmaRows, n, kWgmmaKBytes, a_packed, b_packed, acc, satfinite);
}

}  // namespace l4k::emu
