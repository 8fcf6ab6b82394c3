// Tiles <-> registers. Four neighbouring lanes hold 16 consecutive bytes of one tile row, so the
// fragment maps of mma.h are runs of 16-byte copies here.
#include <immintrin.h>

#include <cstring>

#include "tensor/mma.h"
#include "tensor/multiply.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

// Accumulator registers 2q and 2q + 1 of one warp <-> eight columns of eight rows.
void load_acc(int warps, int n, const uint32_t* const* regs, uint32_t* tile) {
  for (int w = 0; w < warps; ++w)
    for (int q = 0; q < n / 4; ++q) {
      const uint32_t* even = regs[w * n / 2 + 2 * q];
      const uint32_t* odd = regs[w * n / 2 + 2 * q + 1];
      uint32_t* out = tile + (w * 16 + q % 2 * 8) * n + q / 2 * 8;
      for (int g = 0; g < 8; ++g, out += n) {
        __m128i e = _mm_loadu_si128(reinterpret_cast<const __m128i*>(even + g * 4));
        __m128i o = _mm_loadu_si128(reinterpret_cast<const __m128i*>(odd + g * 4));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi32(e, o));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 4), _mm_unpackhi_epi32(e, o));
      }
    }
}

void store_acc(int warps, int n, const uint32_t* tile, uint32_t* const* regs) {
  for (int w = 0; w < warps; ++w)
    for (int q = 0; q < n / 4; ++q) {
      uint32_t* even = regs[w * n / 2 + 2 * q];
      uint32_t* odd = regs[w * n / 2 + 2 * q + 1];
      const uint32_t* in = tile + (w * 16 + q % 2 * 8) * n + q / 2 * 8;
      for (int g = 0; g < 8; ++g, in += n) {
        __m128 low = _mm_loadu_ps(reinterpret_cast<const float*>(in));
        __m128 high = _mm_loadu_ps(reinterpret_cast<const float*>(in + 4));
        _mm_storeu_ps(reinterpret_cast<float*>(even + g * 4), _mm_shuffle_ps(low, high, 0x88));
        _mm_storeu_ps(reinterpret_cast<float*>(odd + g * 4), _mm_shuffle_ps(low, high, 0xdd));
      }
    }
}

void load_acc_f16(int warps, int n, const uint32_t* const* regs, uint16_t* tile) {
  for (int w = 0; w < warps; ++w)
    for (int r = 0; r < n / 4; ++r)
      for (int g = 0; g < 8; ++g)
        std::memcpy(tile + (w * 16 + r % 2 * 8 + g) * n + r / 2 * 8, regs[w * n / 4 + r] + g * 4,
                    16);
}

void store_acc_f16(int warps, int n, const uint16_t* tile, uint32_t* const* regs) {
  for (int w = 0; w < warps; ++w)
    for (int r = 0; r < n / 4; ++r)
      for (int g = 0; g < 8; ++g)
        std::memcpy(regs[w * n / 4 + r] + g * 4, tile + (w * 16 + r % 2 * 8 + g) * n + r / 2 * 8,
                    16);
}

void load_a(int warps, int k_bytes, const uint32_t* const* regs, uint8_t* packed) {
  int count = k_bytes / 8;
  for (int w = 0; w < warps; ++w)
    for (int r = 0; r < count; ++r)
      for (int g = 0; g < 8; ++g)
        std::memcpy(packed + (w * 16 + r % 2 * 8 + g) * k_bytes + r / 2 * 16,
                    regs[w * count + r] + g * 4, 16);
}

}  // namespace

void wgmma_load_acc(int n, const uint32_t* const* regs, uint32_t* tile) {
  load_acc(4, n, regs, tile);
}
void wgmma_store_acc(int n, const uint32_t* tile, uint32_t* const* regs) {
  store_acc(4, n, tile, regs);
}
void wgmma_load_acc_f16(int n, const uint32_t* const* regs, uint16_t* tile) {
  load_acc_f16(4, n, regs, tile);
}
void wgmma_store_acc_f16(int n, const uint16_t* tile, uint32_t* const* regs) {
  store_acc_f16(4, n, tile, regs);
}
void wgmma_load_a(const uint32_t* const* regs, uint8_t* packed) {
  load_a(4, kWgmmaKBytes, regs, packed);
}

const char* mma_sync(MmaType a, MmaType b, MmaAcc acc, int k, const uint32_t* const* a_regs,
                     const uint32_t* const* b_regs, const uint32_t* const* c_regs,
                     uint32_t* const* d_regs, bool satfinite, Fp8Accumulation fp8) {
  bool pair = a == b || (mma_is_fp8(a) && mma_is_fp8(b)) || (mma_is_int(a) && mma_is_int(b));
  if (!pair) return "mma.sync: A and B must have the same type, or both be fp8, or both integers";
  if (mma_is_int(a) != (acc == MmaAcc::s32)) {
    return "mma.sync: s32 accumulators go with s8 and u8 operands, and only with them";
  }
  if (acc == MmaAcc::f16 && (a == MmaType::bf16 || a == MmaType::tf32)) {
    return "mma.sync: bf16 and tf32 operands accumulate in f32 only";
  }
  int k_bytes = k * mma_bytes(a);
  if (k_bytes != 16 && k_bytes != 32) return "mma.sync: m16n8 takes 16 or 32 bytes of K";
  alignas(32) uint8_t tile_a[16 * 32], tile_b[8 * 32];
  load_a(1, k_bytes, a_regs, tile_a);
  for (int r = 0; r < k_bytes / 16; ++r)
    for (int n = 0; n < 8; ++n) std::memcpy(tile_b + n * k_bytes + r * 16, b_regs[r] + n * 4, 16);
  alignas(32) uint32_t tile_d[16 * 8];
  auto* floats = reinterpret_cast<float*>(tile_d);
  if (acc == MmaAcc::f16) {
    uint16_t half[16 * 8];
    load_acc_f16(1, 8, c_regs, half);
    widen_f16(half, floats, 16 * 8);
    multiply_float(a, b, 16, 8, k_bytes, tile_a, tile_b, floats, false, fp8);
    for (int i = 0; i < 16 * 8; ++i) half[i] = float_to_f16(floats[i]);
    store_acc_f16(1, 8, half, d_regs);
    return nullptr;
  }
  load_acc(1, 8, c_regs, tile_d);
  if (acc == MmaAcc::s32) {
    multiply_int(a, b, 16, 8, k_bytes, tile_a, tile_b, reinterpret_cast<int32_t*>(tile_d),
                 satfinite);
  } else {
    multiply_float(a, b, 16, 8, k_bytes, tile_a, tile_b, floats, false, fp8);
  }
  store_acc(1, 8, tile_d, d_regs);
  return nullptr;
}

void ldmatrix(int count, bool trans, const uint8_t* const* rows, uint32_t* const* regs) {
  for (int m = 0; m < count; ++m) {
    uint16_t tile[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(tile[r], rows[matrix_row_lane(m, r)], 16);
    for (int lane = 0; lane < 32; ++lane) {
      Element low = matrix_element(lane, 0, trans), high = matrix_element(lane, 1, trans);
      regs[m][lane] = tile[low.row][low.col] | uint32_t{tile[high.row][high.col]} << 16;
    }
  }
}

void stmatrix(int count, bool trans, const uint32_t* const* regs, uint8_t* const* rows) {
  for (int m = 0; m < count; ++m) {
    uint16_t tile[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      Element low = matrix_element(lane, 0, trans), high = matrix_element(lane, 1, trans);
      tile[low.row][low.col] = static_cast<uint16_t>(regs[m][lane]);
      tile[high.row][high.col] = static_cast<uint16_t>(regs[m][lane] >> 16);
    }
    for (int r = 0; r < 8; ++r) std::memcpy(rows[matrix_row_lane(m, r)], tile[r], 16);
  }
}

void movmatrix(const uint32_t* in, uint32_t* out) {
  uint16_t tile[8][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int part = 0; part < 2; ++part) {
      Element e = matrix_element(lane, part, false);
      tile[e.row][e.col] = static_cast<uint16_t>(in[lane] >> 16 * part);
    }
  for (int lane = 0; lane < 32; ++lane) {
    Element low = matrix_element(lane, 0, true), high = matrix_element(lane, 1, true);
    out[lane] = tile[low.row][low.col] | uint32_t{tile[high.row][high.col]} << 16;
  }
}

}  // namespace l4k::emu
