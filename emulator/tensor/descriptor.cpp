#include "tensor/descriptor.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace l4k::emu {
namespace {

// The field's encoding is not the span's order: 0 none, 1 128B, 2 64B, 3 32B.
constexpr Swizzle kByField[4] = {Swizzle::none, Swizzle::b128, Swizzle::b64, Swizzle::b32};
constexpr uint64_t kFieldOf[4] = {0, 3, 2, 1};

uint32_t field(uint64_t desc, int low, int width) {
  return static_cast<uint32_t>(desc >> low & ((uint64_t{1} << width) - 1));
}

// 8 chunks of 8 halves in, 8 rows of 8 halves out.
void transpose_8x8(const __m128i* in, __m128i* out) {
  __m128i s[8], t[8];
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = _mm_unpacklo_epi16(in[2 * i], in[2 * i + 1]);
    s[2 * i + 1] = _mm_unpackhi_epi16(in[2 * i], in[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int h = 0; h < 2; ++h) {
      t[4 * i + 2 * h] = _mm_unpacklo_epi32(s[4 * i + h], s[4 * i + 2 + h]);
      t[4 * i + 2 * h + 1] = _mm_unpackhi_epi32(s[4 * i + h], s[4 * i + 2 + h]);
    }
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = _mm_unpacklo_epi64(t[i], t[4 + i]);
    out[2 * i + 1] = _mm_unpackhi_epi64(t[i], t[4 + i]);
  }
}

// Offset of the 16 bytes that hold K chunk `c` (0 or 1) of row r.
uint32_t k_major_offset(const MatrixDescriptor& d, uint32_t r, uint32_t c) {
  uint32_t step = d.swizzle == Swizzle::none ? d.leading_offset : 16;
  return r / 8 * d.stride_offset + r % 8 * swizzle_span(d.swizzle) + c * step;
}

// Offset of the 16 bytes that hold rows 8m .. 8m+7 of column k.
uint32_t mn_major_offset(const MatrixDescriptor& d, uint32_t m, uint32_t k) {
  uint32_t span = swizzle_span(d.swizzle), wide = span / 16;
  uint32_t atom_m = d.leading_offset, atom_k = d.stride_offset;
  if (d.swizzle == Swizzle::none) std::swap(atom_m, atom_k);
  return m / wide * atom_m + m % wide * 16 + k / 8 * atom_k + k % 8 * span;
}

}  // namespace

MatrixDescriptor decode_descriptor(uint64_t desc) {
  return {field(desc, 0, 14) << 4, field(desc, 16, 14) << 4, field(desc, 32, 14) << 4,
          field(desc, 49, 3), kByField[field(desc, 62, 2)]};
}

uint64_t encode_descriptor(const MatrixDescriptor& d) {
  return uint64_t{(d.start & 0x3ffff) >> 4} | uint64_t{(d.leading_offset & 0x3ffff) >> 4} << 16 |
         uint64_t{(d.stride_offset & 0x3ffff) >> 4} << 32 | uint64_t{d.base_offset & 7} << 49 |
         kFieldOf[static_cast<int>(d.swizzle)] << 62;
}

std::string to_string(const MatrixDescriptor& d) {
  char text[128];
  std::snprintf(text, sizeof text, "start 0x%x, LBO %u, SBO %u, base offset %u, swizzle %s",
                d.start, d.leading_offset, d.stride_offset, d.base_offset,
                d.swizzle == Swizzle::none  ? "none"
                : d.swizzle == Swizzle::b32 ? "32B"
                : d.swizzle == Swizzle::b64 ? "64B"
                                            : "128B");
  return text;
}

std::string gather_operand(const uint8_t* smem, uint32_t smem_bytes, uint64_t desc, int rows,
                           MmaType type, bool mn_major, uint8_t* packed,
                           std::vector<uint32_t>* chunk_addresses) {
  const MatrixDescriptor d = decode_descriptor(desc);
  if (rows < 8 || rows > 256 || rows % 8) {
    return "wgmma operand: expected a multiple of 8 rows in 8..256, got " + std::to_string(rows);
  }
  if (mn_major && mma_bytes(type) != 2) {
    return "wgmma operand: only bf16 and f16 may be MN-major (transposed); store the tile K-major";
  }
  uint32_t count = static_cast<uint32_t>(rows) * 2, last = 0;
  uint32_t chunks[512];
  for (uint32_t i = 0; i < count; ++i) {
    uint32_t offset =
        mn_major ? mn_major_offset(d, i / 16, i % 16) : k_major_offset(d, i / 2, i % 2);
    chunks[i] = swizzle_address(d.swizzle, d.start + offset, d.base_offset);
    last = std::max(last, chunks[i] + 16);
  }
  if (last > smem_bytes) {
    return "wgmma operand: reads shared memory up to byte " + std::to_string(last) + " of " +
           std::to_string(smem_bytes) + " (" + to_string(d) + ", " + std::to_string(rows) +
           " rows)";
  }
  if (chunk_addresses) chunk_addresses->assign(chunks, chunks + count);
  if (!mn_major) {
    for (uint32_t i = 0; i < count; ++i) std::memcpy(packed + i * 16, smem + chunks[i], 16);
    return "";
  }
  for (uint32_t m = 0; m < count / 16; ++m)
    for (uint32_t half = 0; half < 2; ++half) {
      __m128i in[8], out[8];
      for (uint32_t k = 0; k < 8; ++k)
        in[k] =
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(smem + chunks[m * 16 + half * 8 + k]));
      transpose_8x8(in, out);
      for (uint32_t r = 0; r < 8; ++r)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + (m * 8 + r) * 32 + half * 16), out[r]);
    }
  return "";
}

}  // namespace l4k::emu
