// Tensor-core arithmetic on tiles, and the maps between tiles and registers.
//
// Operand tiles are packed: `rows` x 32 bytes, K contiguous (wgmma's K is always 32 bytes: 8 tf32,
// 16 bf16/f16, 32 fp8/int8). A has 64 rows, B has n rows (row j of B is column j of the product).
#pragma once

#include <cstdint>

namespace l4k::emu {

enum class MmaType : uint8_t { bf16, f16, tf32, e4m3, e5m2, s8, u8 };

constexpr int mma_bytes(MmaType t) {
  return t == MmaType::tf32 ? 4 : t == MmaType::bf16 || t == MmaType::f16 ? 2 : 1;
}
constexpr bool mma_is_fp8(MmaType t) { return t == MmaType::e4m3 || t == MmaType::e5m2; }
constexpr bool mma_is_int(MmaType t) { return t == MmaType::s8 || t == MmaType::u8; }

// exact: products and sums in fp32. hopper: at every instruction the accumulator and the 32
// products are aligned to the largest exponent among them and truncated to 14 significant bits
// before they are added (a model of what Hopper shows for fp8; other types are not affected).
enum class Fp8Accumulation : uint8_t { exact, hopper };

inline constexpr int kWgmmaRows = 64;
inline constexpr int kWgmmaKBytes = 32;
inline constexpr int kHopperFp8Bits = 14;

// acc = (scale_d ? acc : 0) + scale_a * A * scale_b * B. `acc` is 64 x n row-major; n is a multiple
// of 8 in 8..256; scale_a and scale_b are 1 or -1. Products are exact, every addition rounds once,
// and K is summed in order, so results depend on nothing but the operands. NaN comes out canonical.
void wgmma_tile(MmaType a, MmaType b, int n, const uint8_t* a_packed, const uint8_t* b_packed,
                float* acc, bool scale_d, int scale_a, int scale_b, Fp8Accumulation fp8);
// f16 accumulators (f16, e4m3, e5m2 operands): the sum is formed in fp32 and rounded once.
void wgmma_tile_f16(MmaType a, MmaType b, int n, const uint8_t* a_packed, const uint8_t* b_packed,
                    uint16_t* acc, bool scale_d, int scale_a, int scale_b, Fp8Accumulation fp8);
// s32 accumulators (s8, u8 operands); `satfinite` clamps the result, otherwise it wraps.
void wgmma_tile_s32(MmaType a, MmaType b, int n, const uint8_t* a_packed, const uint8_t* b_packed,
                    int32_t* acc, bool scale_d, bool satfinite);

// ---- fragment maps ----------------------------------------------------------------------------
// Where a register's element sits in the tile. `row` and `col` count elements.
struct Element {
  int row, col;
};
// Where a tile's element sits in registers: `thread` 0..127 for wgmma, 0..31 for mma.sync;
// `reg` is a 32-bit register, `part` the element inside it (0 is the low one).
struct Place {
  int thread, reg, part;
};

// wgmma accumulators, 64 x n. Type f32/s32: n/2 registers, one element each. f16: n/4 registers.
constexpr Element wgmma_acc_element(int thread, int reg) {
  return {(thread / 32) * 16 + (thread % 32) / 4 + 8 * (reg / 2 % 2),
          8 * (reg / 4) + thread % 4 * 2 + reg % 2};
}
constexpr Place wgmma_acc_place(int row, int col) {
  return {row / 16 * 32 + row % 8 * 4 + col % 8 / 2, col / 8 * 4 + row / 8 % 2 * 2 + col % 2, 0};
}
constexpr Element wgmma_acc_f16_element(int thread, int reg, int part) {
  return wgmma_acc_element(thread, reg * 2 + part);
}
constexpr Place wgmma_acc_f16_place(int row, int col) {
  Place p = wgmma_acc_place(row, col);
  return {p.thread, p.reg / 2, p.reg % 2};
}

// wgmma A in registers (64 x 32 bytes, four registers). Every type has the same map in bytes: a
// register holds four consecutive bytes of K. `thread` may be 0..31 for mma.sync's 16-row A.
constexpr Element a_fragment_element(MmaType t, int thread, int reg, int part) {
  int bytes = mma_bytes(t);
  return {(thread / 32) * 16 + (thread % 32) / 4 + 8 * (reg % 2),
          (thread % 4 * 4 + 16 * (reg / 2)) / bytes + part};
}
constexpr Place a_fragment_place(MmaType t, int row, int col) {
  int bytes = mma_bytes(t), byte = col * bytes;
  return {row / 16 * 32 + row % 8 * 4 + byte % 16 / 4, row / 8 % 2 + byte / 16 * 2,
          byte % 4 / bytes};
}
// mma.sync B (k x 8): row is k, col is n. One register per 16 bytes of K.
constexpr Element b_fragment_element(MmaType t, int lane, int reg, int part) {
  return {(lane % 4 * 4 + 16 * reg) / mma_bytes(t) + part, lane / 4};
}
constexpr Place b_fragment_place(MmaType t, int k, int n) {
  int bytes = mma_bytes(t), byte = k * bytes;
  return {n * 4 + byte % 16 / 4, byte / 16, byte % 4 / bytes};
}
// mma.sync C and D, 16 x 8: the f32/s32 and f16 maps are wgmma's for warp 0 and n = 8.
constexpr Element c_fragment_element(int lane, int reg) { return wgmma_acc_element(lane, reg); }
constexpr Place c_fragment_place(int row, int col) { return wgmma_acc_place(row, col); }

// ---- tiles <-> registers ----------------------------------------------------------------------
// Registers are arrays of 32 lanes. For wgmma `regs[warp * count + r]` points at register r of warp
// 0..3 of the warpgroup, where count is n/2 (f32, s32), n/4 (f16) or 4 (A).
void wgmma_load_acc(int n, const uint32_t* const* regs, uint32_t* tile);
void wgmma_store_acc(int n, const uint32_t* tile, uint32_t* const* regs);
void wgmma_load_acc_f16(int n, const uint32_t* const* regs, uint16_t* tile);
void wgmma_store_acc_f16(int n, const uint16_t* tile, uint32_t* const* regs);
void wgmma_load_a(const uint32_t* const* regs, uint8_t* packed);

// ---- mma.sync ---------------------------------------------------------------------------------
enum class MmaAcc : uint8_t { f32, f16, s32 };
// mma.sync.m16n8k<k> on one warp; k * bytes is 16 or 32. Registers: A 2 or 4, B 1 or 2, C and D
// 4 (f32, s32) or 2 (f16), each an array of 32 lanes. D may alias any operand. Returns nullptr, or
// what is wrong with the combination of types.
const char* mma_sync(MmaType a, MmaType b, MmaAcc acc, int k, const uint32_t* const* a_regs,
                     const uint32_t* const* b_regs, const uint32_t* const* c_regs,
                     uint32_t* const* d_regs, bool satfinite = false,
                     Fp8Accumulation fp8 = Fp8Accumulation::exact);

// ---- ldmatrix, stmatrix (m8n8, b16) -----------------------------------------------------------
// Matrix `m` (0..count-1) takes the addresses of its eight rows from lanes 8m .. 8m+7.
constexpr int matrix_row_lane(int matrix, int row) { return matrix * 8 + row; }
// Which element of matrix `reg` lane `lane` holds in half `part` of register `reg`.
constexpr Element matrix_element(int lane, int part, bool trans) {
  return trans ? Element{lane % 4 * 2 + part, lane / 4} : Element{lane / 4, lane % 4 * 2 + part};
}
constexpr Place matrix_place(int matrix, int row, int col, bool trans) {
  int major = trans ? col : row, minor = trans ? row : col;
  return {major * 4 + minor / 2, matrix, minor % 2};
}
// count 1, 2 or 4. rows[lane] points at the 16 bytes that lane's address names (only the first
// 8 * count are used); regs[m] is an array of 32 lanes. (.m16n16 and .b8 are not in sm_90a.)
void ldmatrix(int count, bool trans, const uint8_t* const* rows, uint32_t* const* regs);
void stmatrix(int count, bool trans, const uint32_t* const* regs, uint8_t* const* rows);
// movmatrix.sync.aligned.m8n8.trans.b16. In place is fine.
void movmatrix(const uint32_t* in, uint32_t* out);

}  // namespace l4k::emu
