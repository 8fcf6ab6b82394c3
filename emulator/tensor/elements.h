// Products of small matrices element by element: the shapes of mma.sync and wmma that have no fast
// path, in any operand type.
#pragma once

#include <cstdint>

namespace l4k::emu {

enum class ElementType : uint8_t { f16, bf16, tf32, s8, u8, s4, u4, b1, f64, f32, s32 };
uint32_t element_bits(ElementType t);

// How one-bit elements combine: their matches or their common ones are counted.
enum class BitOp : uint8_t { none, xor_, and_ };

struct ElementProduct {
  uint16_t m, n, k;
  ElementType a, b, c, d;  // c, d: f64 or s32 both, or each f16 or f32
  BitOp bit_op;
  bool satfinite;  // of s32: clamps the result, which wraps otherwise
};

// d = a * b + c on elements' bits, row by row: a is m x k, b k x n, c and d m x n, in place. Products are exact; f32 and
// f64 round after every addition, f16 once at the end. NaN comes out canonical.
void multiply_elements(const ElementProduct& p, const uint64_t* a, const uint64_t* b, uint64_t* c);

}  // namespace l4k::emu
