// wgmma's 64-bit shared-memory matrix descriptor (sm_90) and the operand tiles it names.
//
// Layouts, in 16-byte units (CuTe's notation; LBO and SBO are the descriptor's leading and
// stride byte offsets; m counts rows of A or B, k columns of K):
//   K-major   none  ((8,m),2):((1,SBO),LBO)        MN-major  none  ((1,m),(8,k)):((-,SBO),(1,LBO))
//             32B   ((8,m),2):((2,SBO),1)                    32B   ((2,m),(8,k)):((1,LBO),(2,SBO))
//             64B   ((8,m),2):((4,SBO),1)                    64B   ((4,m),(8,k)):((1,LBO),(4,SBO))
//             128B  ((8,m),2):((8,SBO),1)                    128B  ((8,m),(8,k)):((1,LBO),(8,SBO))
// The swizzle is an exclusive-or inside the resulting shared-memory *address*: bits 4.. take bits
// 7.. (one, two or three of them for 32, 64 and 128 bytes).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/mma.h"

namespace l4k::emu {

enum class Swizzle : uint8_t { none, b32, b64, b128 };

// Span in bytes of a swizzle row: 16, 32, 64, 128.
constexpr uint32_t swizzle_span(Swizzle s) { return 16u << static_cast<int>(s); }

// Address of the byte that an unswizzled layout puts at `address`. `base_offset` shifts the phase
// of the pattern (0 unless the pattern does not start at a multiple of 8 * span).
constexpr uint32_t swizzle_address(Swizzle s, uint32_t address, uint32_t base_offset = 0) {
  uint32_t mask = (1u << static_cast<int>(s)) - 1;
  return address ^ ((((address >> 7) - base_offset) & mask) << 4);
}

struct MatrixDescriptor {
  uint32_t start;           // bytes, bits 0-13 of the descriptor times 16
  uint32_t leading_offset;  // bytes, bits 16-29 times 16
  uint32_t stride_offset;   // bytes, bits 32-45 times 16
  uint32_t base_offset;     // bits 49-51
  Swizzle swizzle;          // bits 62-63: 0 none, 1 128B, 2 64B, 3 32B
};
MatrixDescriptor decode_descriptor(uint64_t desc);
uint64_t encode_descriptor(const MatrixDescriptor& d);  // for tests and tools
std::string to_string(const MatrixDescriptor& d);       // one line for reports

// Reads one instruction's operand (rows x 32 bytes of K) from `smem`, the CTA's shared memory
// indexed by shared-window address, into `packed` (rows x 32, K contiguous). `rows` is 64 for A and
// n for B. `mn_major` is wgmma's tnspA/tnspB (16-bit types only). With `chunk_addresses` also the
// start address of every 16-byte chunk read, in no particular order. Returns "" or what is wrong:
// an address past `smem_bytes`, a transposed type that does not exist.
std::string gather_operand(const uint8_t* smem, uint32_t smem_bytes, uint64_t desc, int rows,
                           MmaType type, bool mn_major, uint8_t* packed,
                           std::vector<uint32_t>* chunk_addresses = nullptr);

}  // namespace l4k::emu
