// Matrices in the registers of a warp, element by element: wmma, whose fragments have a layout of
// our own, and the shapes of mma.sync that have no fast path.
#pragma once

#include <cstdint>

#include "tensor/elements.h"

namespace l4k::emu {

struct RowColumn {
  uint32_t row, col;
};
// A matrix in fragments of wmma. Of A and B a lane holds consecutive elements in the order of memory;
// f16's are always 16 to a lane, so that a small matrix is there several times. An accumulator is made
// of blocks of eight by eight, of which a lane holds two neighbours of a row, in any type: programs
// convert accumulators element by element.
struct WmmaMatrix {
  uint8_t rows, cols;
  ElementType type;
  bool column_major, accumulator;
  uint32_t bits() const { return element_bits(type); }
  uint32_t register_bits() const { return bits() == 64 ? 64 : 32; }
  uint32_t register_elements() const { return register_bits() / bits(); }
  uint32_t size() const { return uint32_t{rows} * cols; }
  uint32_t leading() const { return column_major ? rows : cols; }
  uint32_t registers() const;
  // Of an element in memory, counted in elements.
  uint64_t offset(RowColumn at, uint64_t stride) const {
    return column_major ? at.col * stride + at.row : at.row * stride + at.col;
  }
};
// Where element `e` of a lane that has `count` is.
RowColumn wmma_place(const WmmaMatrix& m, uint32_t count, uint32_t lane, uint32_t e);

struct WmmaProduct {
  ElementProduct product;
  bool a_column_major, b_column_major;
  void matrices(WmmaMatrix (&dabc)[4]) const;
};

// d = a * b + c in registers: those of D, A, B and C in turn, each of 32 lanes of 32 bits, or of 64
// for f64. D may be any of the others.
void wmma_multiply(const WmmaProduct& p, uint8_t* const* registers);

// mma.sync: how many registers D, A, B and C have, and the product of these.
bool mma_exists(const ElementProduct& p);  // in this shape
struct MmaRegisters {
  uint32_t d, a, b;
};
MmaRegisters mma_registers(const ElementProduct& p);
void mma_multiply(const ElementProduct& p, uint8_t* const* registers);

}  // namespace l4k::emu
