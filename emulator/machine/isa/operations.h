// Operations that exist for several integer types: a table names each, and its handlers by type.
#pragma once

#include <span>
#include <type_traits>

#include "machine/isa/decode.h"

namespace l4k::emu {

template <typename T>
using unsigned_of = std::make_unsigned_t<T>;

// Bits of an operand: as many as the type has, always 32, or twice as many.
enum class Width { type, word, twice };
struct Form {
  int sources = 0;
  Width result = Width::type, second = Width::type, third = Width::type;  // third: and fourth
};

// Handlers for u16, s16, u32, s32, u64, s64.
#define L4K_BY_TYPE(fn) \
  {fn<uint16_t>, fn<int16_t>, fn<uint32_t>, fn<int32_t>, fn<uint64_t>, fn<int64_t>}
#define L4K_BY_BITS(fn) \
  {fn<uint16_t>, fn<uint16_t>, fn<uint32_t>, fn<uint32_t>, fn<uint64_t>, fn<uint64_t>}
#define L4K_16_32(fn) {fn<uint16_t>, fn<int16_t>, fn<uint32_t>, fn<int32_t>, nullptr, nullptr}
#define L4K_32_64(fn) {nullptr, nullptr, fn<uint32_t>, fn<int32_t>, fn<uint64_t>, fn<int64_t>}
#define L4K_32_64_BITS(fn) \
  {nullptr, nullptr, fn<uint32_t>, fn<uint32_t>, fn<uint64_t>, fn<uint64_t>}
struct Operation {
  const char* name;
  Form form;
  Handler handlers[6];
  Handler handler(const Type& t) const {
    int bits = t.bits == 16 ? 0 : t.bits == 32 ? 2 : t.bits == 64 ? 4 : -1;
    return bits < 0 ? nullptr : handlers[bits + t.is_signed()];
  }
};

const Operation* find_operation(std::span<const Operation> table, const std::string& name);
// Takes the operands; without a handler the instruction is not implemented.
bool finish_operation(Decoder& d, Handler h, const Type& t, const Form& form);

inline const Type kB32{Kind::bits, 32, "b32"};

}  // namespace l4k::emu
