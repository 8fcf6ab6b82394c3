#include "tensor/elements.h"

#include <bit>
#include <cmath>
#include <limits>

#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

double to_double(ElementType t, uint64_t x) {
  auto word = static_cast<uint32_t>(x);
  switch (t) {
    case ElementType::f16:
      return f16_to_float(static_cast<uint16_t>(x));
    case ElementType::bf16:
      return bf16_to_float(static_cast<uint16_t>(x));
    case ElementType::tf32:  // the hardware does not read the low 13 bits
      return from_bits(word & 0xffffe000u);
    case ElementType::f32:
      return from_bits(word);
    default:
      return std::bit_cast<double>(x);
  }
}

int64_t to_int(ElementType t, uint64_t x) {
  switch (t) {
    case ElementType::s8:
      return static_cast<int8_t>(x);
    case ElementType::s4:
      return static_cast<int64_t>(x << 60) >> 60;
    case ElementType::s32:
      return static_cast<int32_t>(x);
    default:
      return static_cast<int64_t>(x);
  }
}

uint64_t sum_f64(const ElementProduct& p, const uint64_t* a, const uint64_t* b, uint64_t c) {
  double sum = std::bit_cast<double>(c);
  for (int i = 0; i < p.k; ++i)
    sum = std::fma(std::bit_cast<double>(a[i]), std::bit_cast<double>(b[i * p.n]), sum);
  return std::bit_cast<uint64_t>(sum);
}

uint64_t sum_float(const ElementProduct& p, const uint64_t* a, const uint64_t* b, uint64_t c) {
  auto sum = static_cast<float>(to_double(p.c, c));
  for (int i = 0; i < p.k; ++i)
    sum = std::fma(static_cast<float>(to_double(p.a, a[i])),
                   static_cast<float>(to_double(p.b, b[i * p.n])), sum);
  return p.d == ElementType::f16 ? float_to_f16(sum) : bits(canonical(sum));
}

uint64_t sum_int(const ElementProduct& p, const uint64_t* a, const uint64_t* b, uint64_t c) {
  int64_t sum = to_int(ElementType::s32, c);
  for (int i = 0; i < p.k; ++i) {
    int64_t x = to_int(p.a, a[i]), y = to_int(p.b, b[i * p.n]);
    sum += p.bit_op == BitOp::xor_ ? x ^ y : x * y;
  }
  using Limits = std::numeric_limits<int32_t>;
  if (p.satfinite)
    sum = sum < Limits::min() ? Limits::min() : sum > Limits::max() ? Limits::max() : sum;
  return static_cast<uint32_t>(sum);
}

}  // namespace

uint32_t element_bits(ElementType t) {
  static constexpr uint8_t kBits[] = {16, 16, 32, 8, 8, 4, 4, 1, 64, 32, 32};
  return kBits[static_cast<int>(t)];
}

void multiply_elements(const ElementProduct& p, const uint64_t* a, const uint64_t* b, uint64_t* c) {
  auto* sum = p.d == ElementType::f64 ? sum_f64 : p.d == ElementType::s32 ? sum_int : sum_float;
  for (int i = 0; i < p.m; ++i)
    for (int j = 0; j < p.n; ++j) c[i * p.n + j] = sum(p, a + i * p.k, b + j, c[i * p.n + j]);
}

}  // namespace l4k::emu
