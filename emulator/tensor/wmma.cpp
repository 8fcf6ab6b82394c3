#include "tensor/wmma.h"

#include <bit>
#include <cstring>
#include <vector>

namespace l4k::emu {
namespace {

uint64_t get(const uint8_t* reg, uint32_t bytes, uint32_t lane) {
  uint64_t v = 0;
  std::memcpy(&v, reg + lane * bytes, bytes);
  return v;
}
void put(uint8_t* reg, uint32_t bytes, uint32_t lane, uint64_t v) {
  std::memcpy(reg + lane * bytes, &v, bytes);
}
uint64_t low_bits(uint64_t v, uint32_t bits) { return v & (~uint64_t{0} >> (64 - bits)); }

std::vector<uint64_t> read(const WmmaMatrix& m, uint8_t* const* registers) {
  std::vector<uint64_t> v(m.size());
  uint32_t per = m.register_elements(), count = m.registers() * per;
  for (uint32_t lane = 32; lane-- > 0;)
    for (uint32_t e = count; e-- > 0;) {
      RowColumn at = wmma_place(m, count, lane, e);
      uint64_t bits = get(registers[e / per], m.register_bits() / 8, lane);
      v[at.row * m.cols + at.col] = low_bits(bits >> (e % per * m.bits()), m.bits());
    }
  return v;
}

void write(const WmmaMatrix& m, uint8_t* const* registers, const std::vector<uint64_t>& v) {
  uint32_t per = m.register_elements(), count = m.registers() * per;
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t r = 0; r < m.registers(); ++r) {
      uint64_t bits = 0;
      for (uint32_t i = 0; i < per; ++i) {
        RowColumn at = wmma_place(m, count, lane, r * per + i);
        bits |= v[at.row * m.cols + at.col] << (i * m.bits());
      }
      put(registers[r], m.register_bits() / 8, lane, bits);
    }
}

// f(index, lane, register) for every element of an m x 8 accumulator of mma.sync.
template <typename F>
void for_accumulators(const ElementProduct& p, F f) {
  for (uint32_t i = 0; i < p.m; ++i)
    for (uint32_t j = 0; j < 8; ++j) f(i * 8 + j, i % 8 * 4 + j / 2, i / 8 * 2 + j % 2);
}

}  // namespace

uint32_t WmmaMatrix::registers() const {
  uint32_t copies = type == ElementType::f16 && !accumulator ? 512 / size() : 1;
  return size() * copies * bits() / (32 * register_bits());
}

RowColumn wmma_place(const WmmaMatrix& m, uint32_t count, uint32_t lane, uint32_t e) {
  if (m.accumulator) {
    uint32_t block = e / 2, down = m.rows / 8u;
    return {block % down * 8 + lane / 4, block / down * 8 + lane % 4 * 2 + e % 2};
  }
  uint32_t i = (lane * count + e) % m.size(), major = i / m.leading(), minor = i % m.leading();
  return m.column_major ? RowColumn{minor, major} : RowColumn{major, minor};
}

void WmmaProduct::matrices(WmmaMatrix (&dabc)[4]) const {
  const ElementProduct& p = product;
  auto m = static_cast<uint8_t>(p.m), n = static_cast<uint8_t>(p.n), k = static_cast<uint8_t>(p.k);
  dabc[0] = {m, n, p.d, false, true};
  dabc[1] = {m, k, p.a, a_column_major, false};
  dabc[2] = {k, n, p.b, b_column_major, false};
  dabc[3] = {m, n, p.c, false, true};
}

void wmma_multiply(const WmmaProduct& p, uint8_t* const* registers) {
  WmmaMatrix dabc[4];
  p.matrices(dabc);
  std::vector<uint64_t> values[4];
  uint8_t* const* at = registers + dabc[0].registers();
  for (int i = 1; i < 4; ++i) {
    values[i] = read(dabc[i], at);
    at += dabc[i].registers();
  }
  multiply_elements(p.product, values[1].data(), values[2].data(), values[3].data());
  write(dabc[0], registers, values[3]);
}

// Of f64 four elements of K are one step, of integers 128 bits; 16 rows may take more steps.
bool mma_exists(const ElementProduct& p) {
  uint32_t bits = element_bits(p.a), step = bits == 64 ? 4 : 128 / bits, steps = p.k / step;
  uint32_t most = p.m == 8 ? 1 : bits == 64 ? 4 : 2;
  return (bits <= 8 || bits == 64) && p.n == 8 && (p.m == 8 || p.m == 16) && steps * step == p.k &&
         std::has_single_bit(steps) && steps <= most;
}

MmaRegisters mma_registers(const ElementProduct& p) {
  uint32_t width = element_bits(p.a), groups = p.m / 8u;
  uint32_t b = p.k * width / (4 * (width == 64 ? 64 : 32));
  return {groups * 2, groups * b, b};
}

// Four neighbouring lanes hold a row of A (a column of B) in turns of one register, and a second
// group of eight rows is in registers between those of the first.
void mma_multiply(const ElementProduct& p, uint8_t* const* registers) {
  const uint32_t width = element_bits(p.a), bytes = width == 64 ? 8 : 4, per = bytes * 8 / width;
  const uint32_t groups = p.m / 8u;
  const MmaRegisters count = mma_registers(p);
  uint8_t* const* a = registers + count.d;
  uint8_t* const* b = a + count.a;
  uint8_t* const* c = b + count.b;
  auto element = [&](const uint8_t* reg, uint32_t lane, uint32_t k) {
    return low_bits(get(reg, bytes, lane) >> (k % per * width), width);
  };
  std::vector<uint64_t> ma(p.m * p.k), mb(p.k * p.n), mc(p.m * p.n);
  for (uint32_t k = 0; k < p.k; ++k) {
    uint32_t turn = k / per, lane = turn % 4;
    for (uint32_t i = 0; i < p.m; ++i)
      ma[i * p.k + k] = element(a[turn / 4 * groups + i / 8], i % 8 * 4 + lane, k);
    for (uint32_t j = 0; j < p.n; ++j) mb[k * p.n + j] = element(b[turn / 4], j * 4 + lane, k);
  }
  for_accumulators(
      p, [&](uint32_t i, uint32_t lane, uint32_t reg) { mc[i] = get(c[reg], bytes, lane); });
  multiply_elements(p, ma.data(), mb.data(), mc.data());
  for_accumulators(
      p, [&](uint32_t i, uint32_t lane, uint32_t reg) { put(registers[reg], bytes, lane, mc[i]); });
}

}  // namespace l4k::emu
