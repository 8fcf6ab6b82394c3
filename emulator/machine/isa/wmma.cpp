// wmma.load, wmma.store and wmma.mma: matrices of a warp in fragments whose layout is our own.
#include <bit>

#include "machine/core/memory.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "machine/isa/mma.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

// A matrix in fragments. Of A and B a lane holds consecutive elements in the order of memory;
// f16's are always 16 to a lane, so that a small matrix is there several times. An accumulator is made of
// blocks of eight by eight, of which a lane holds two neighbours of a row, in any type: programs
// convert accumulators element by element.
struct Matrix {
  uint8_t rows, cols;
  ElementType type;
  bool column_major, accumulator;
  u32 bits() const { return element_bits(type); }
  u32 register_bits() const { return bits() == 64 ? 64 : 32; }
  u32 register_elements() const { return register_bits() / bits(); }
  u32 size() const { return u32{rows} * cols; }
  u32 leading() const { return column_major ? rows : cols; }
};
struct At {
  u32 row, col;
};
// Where element `e` of a lane that has `count` is.
At place(const Matrix& m, u32 count, u32 lane, u32 e) {
  if (m.accumulator) {
    u32 block = e / 2, down = m.rows / 8u;
    return {block % down * 8 + lane / 4, block / down * 8 + lane % 4 * 2 + e % 2};
  }
  u32 i = (lane * count + e) % m.size(), major = i / m.leading(), minor = i % m.leading();
  return m.column_major ? At{minor, major} : At{major, minor};
}

struct Access {
  Matrix matrix;
  Space space;
  bool has_stride;
};

// Calls f(lane, element, address) for all elements that are accessed one at a time: registers of
// A and B, single elements of accumulators.
template <typename F>
void for_each_access(Warp& w, const Inst& in, F f) {
  const auto& m = in.modifiers.as<Access>();
  const Matrix& x = m.matrix;
  u64 base[32];
  addresses(w, in, base);
  u32 count = static_cast<u32>(in.list.size()) * x.register_elements();
  u32 step = x.accumulator ? 1 : x.register_elements(), bytes = x.bits() * step / 8;
  for (u32 e = 0; e < count; e += step) {
    u64 address[32];
    for (u32 lane = 0; lane < 32; ++lane) {
      u32 stride = m.has_stride ? w.reg<u32>(in.s[1])[lane] : x.leading();
      if (base[lane] != base[0] || (m.has_stride && stride != w.reg<u32>(in.s[1])[0]))
        fault("bad-operand", "the lanes of a warp pass different addresses or strides",
              static_cast<int>(lane));
      At at = place(x, count, lane, e);
      u64 index = x.column_major ? u64{at.col} * stride + at.row : u64{at.row} * stride + at.col;
      address[lane] = base[lane] + index * x.bits() / 8;
    }
    u64 first = address[0];
    Space space = m.space == Space::none ? generic_space(&first) : m.space;
    if (space == Space::global) count_global(w, address, kAllLanes, bytes);
    else if (space == Space::shared) count_shared(w, address, kAllLanes, bytes);
    for (u32 lane = 0; lane < 32; ++lane) f(static_cast<int>(lane), e, address[lane], bytes);
  }
}

void load(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  const auto& m = in.modifiers.as<Access>();
  const u32 per = m.matrix.register_elements(), width = m.matrix.register_bits() / 8;
  for_each_access(w, in, [&](int lane, u32 e, u64 address, u32 bytes) {
    u64 v = 0, shift = e % per * m.matrix.bits();
    read_memory(w, lane, m.space, address, bytes, &v, Order::weak);
    const Reg& r = in.list[e / per];
    u64 below = shift ? get_lane(w, r, width, lane) & ((u64{1} << shift) - 1) : 0;
    put_lane(w, r, width, lane, below | v << shift);
  });
}

void store(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  const auto& m = in.modifiers.as<Access>();
  const u32 per = m.matrix.register_elements(), width = m.matrix.register_bits() / 8;
  for_each_access(w, in, [&](int lane, u32 e, u64 address, u32 bytes) {
    u64 v = get_lane(w, in.list[e / per], width, lane) >> (e % per * m.matrix.bits());
    write_memory(w, lane, m.space, address, bytes, &v, Order::weak);
  });
}

struct Product {
  ElementProduct product;
  bool a_column_major, b_column_major;
};
// D, A, B and C: the matrices, and how many registers hold them.
struct Part {
  Matrix matrix;
  size_t registers;
};
void parts_of(const Product& x, Part (&parts)[4]) {
  const ElementProduct& p = x.product;
  auto byte = [](u32 v) { return static_cast<uint8_t>(v); };
  parts[0].matrix = {byte(p.m), byte(p.n), p.d, false, true};
  parts[1].matrix = {byte(p.m), byte(p.k), p.a, x.a_column_major, false};
  parts[2].matrix = {byte(p.k), byte(p.n), p.b, x.b_column_major, false};
  parts[3].matrix = parts[0].matrix, parts[3].matrix.type = p.c;
  for (Part& part : parts) {
    const Matrix& m = part.matrix;
    u32 copies = m.type == ElementType::f16 && !m.accumulator ? 512 / m.size() : 1;
    part.registers = m.size() * copies * m.bits() / (32 * m.register_bits());
  }
}

std::vector<u64> read_fragment(Warp& w, const Part& part, const Reg* registers) {
  const Matrix& m = part.matrix;
  std::vector<u64> v(m.size());
  u32 per = m.register_elements(), count = static_cast<u32>(part.registers) * per;
  for (u32 lane = 32; lane-- > 0;)
    for (u32 e = count; e-- > 0;) {
      u64 bits = get_lane(w, registers[e / per], m.register_bits() / 8, static_cast<int>(lane));
      At at = place(m, count, lane, e);
      u64 mask = ~u64{0} >> (64 - m.bits());
      v[at.row * m.cols + at.col] = bits >> (e % per * m.bits()) & mask;
    }
  return v;
}

void write_fragment(Warp& w, const Part& part, const Reg* registers, const std::vector<u64>& v) {
  const Matrix& m = part.matrix;
  u32 per = m.register_elements(), count = static_cast<u32>(part.registers) * per;
  for (u32 lane = 0; lane < 32; ++lane)
    for (u32 r = 0; r < part.registers; ++r) {
      u64 bits = 0;
      for (u32 i = 0; i < per; ++i) {
        At at = place(m, count, lane, r * per + i);
        bits |= v[at.row * m.cols + at.col] << (i * m.bits());
      }
      put_lane(w, registers[r], m.register_bits() / 8, static_cast<int>(lane), bits);
    }
}

void multiply(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  const auto& m = in.modifiers.as<Product>();
  Part parts[4];
  parts_of(m, parts);
  const Reg *d = in.list.data(), *a = d + parts[0].registers, *b = a + parts[1].registers,
            *c = b + parts[2].registers;
  for (size_t i = parts[0].registers; i < in.list.size(); ++i) w.use(in.list[i], kAllLanes);
  std::vector<u64> x = read_fragment(w, parts[1], a), y = read_fragment(w, parts[2], b),
                   sum = read_fragment(w, parts[3], c);
  multiply_elements(m.product, x.data(), y.data(), sum.data());
  write_fragment(w, parts[0], d, sum);
  for (size_t i = 0; i < parts[0].registers; ++i) w.written(d[i], kAllLanes);
  w.counters().flop += 2ull * m.product.m * m.product.n * m.product.k;
}

// The layouts that the modifiers name, in their order: whether each is column-major.
std::vector<bool> take_layouts(Decoder& d, size_t count) {
  std::vector<bool> layouts;
  for (const std::string& mod : d.in->mods)
    if (mod == "row" || mod == "col") {
      layouts.push_back(mod == "col");
      d.take(mod.c_str());
    }
  if (layouts.size() != count) d.unsupported("layouts");
  return layouts;
}

void decode_access(Decoder& d, bool is_load) {
  Inst& out = *d.out;
  int role = is_load ? d.take_one("a b c") : d.take("d") ? 2 : -1;
  if (role < 0) d.unsupported();
  d.take("sync"), d.take("aligned");
  Access m{};
  m.matrix.column_major = take_layouts(d, 1)[0];
  MatrixShape shape = take_shape(d);
  m.matrix.rows = static_cast<uint8_t>(role == 1 ? shape.k : shape.m);
  m.matrix.cols = static_cast<uint8_t>(role == 0 ? shape.k : shape.n);
  m.matrix.accumulator = role == 2;
  int space = d.take_one("global shared shared::cta shared::cluster");
  m.space = space < 0 ? Space::none : space == 0 ? Space::global : Space::shared;
  m.matrix.type = matrix_type(d, d.take_type());
  d.finish();
  d.add_address(is_load ? 1 : 0, m.space);
  m.has_stride = d.operands() > 2;
  if (m.has_stride) d.add_source(2, 32);
  const PtxOperand& registers = d.operand(is_load ? 0 : 1);
  d.add_list(registers, m.matrix.register_bits(), is_load ? ListUse::written : ListUse::read);
  u64 held = out.list.size() * m.matrix.register_elements() * 32;
  if (!held || held % m.matrix.size())
    throw PtxError(d.in->line, d.in->text() + ": wrong number of registers");
  out.modifiers.store(m);
  out.run = is_load ? load : store;
}

void decode_multiply(Decoder& d) {
  Product m{};
  ElementProduct& p = m.product;
  if (d.in->has("popc")) p.bit_op = take_bit_op(d);
  d.take("sync"), d.take("aligned");
  auto layouts = take_layouts(d, 2);
  m.a_column_major = layouts[0], m.b_column_major = layouts[1];
  MatrixShape shape = take_shape(d);
  p.m = shape.m, p.n = shape.n, p.k = shape.k;
  p.satfinite = d.take("satfinite");
  d.take("rn");
  std::vector<ElementType> types;
  while (auto t = d.try_type()) types.push_back(matrix_type(d, *t));
  d.finish();
  // f16 operands go without their types: D and C only.
  if (types.size() == 2) types = {types[0], ElementType::f16, ElementType::f16, types[1]};
  if (types.size() != 4) d.unsupported("types");
  p.d = types[0], p.a = types[1], p.b = types[2], p.c = types[3];
  d.out->modifiers.store(m);
  Part parts[4];
  parts_of(m, parts);
  for (size_t i = 0; i < 4; ++i)
    add_matrix(d, i, parts[i].matrix.register_bits(), i == 0, parts[i].registers);
  d.out->checks_itself = true;
  d.out->run = multiply;
}

}  // namespace

bool decode_wmma(Decoder& d) {
  if (d.in->opcode != "wmma") return false;
  int what = d.take_one("load store mma");
  if (what < 0) d.unsupported();
  if (what == 2) decode_multiply(d);
  else decode_access(d, what == 0);
  return true;
}

}  // namespace l4k::emu
