// wmma.load, wmma.store and wmma.mma: matrices of a warp in fragments whose layout is our own.
#include <bit>

#include "machine/core/memory.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "machine/isa/mma.h"
#include "tensor/wmma.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

struct Access {
  WmmaMatrix matrix;
  Space space;
  bool has_stride;
};

// Calls f(lane, element, address) for all elements that are accessed one at a time: registers of
// A and B, single elements of accumulators.
template <typename F>
void for_each_access(Warp& w, const Inst& in, F f) {
  const auto& m = in.modifiers.as<Access>();
  const WmmaMatrix& x = m.matrix;
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
      u64 index = x.offset(wmma_place(x, count, lane, e), stride);
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
    const Reg& r = in.list[e / per];
    Origin from;
    if (read_memory(w, lane, m.space, address, bytes, &v, Order::weak, &from))
      w.undefined_results.push_back({r, 1u << lane, from});
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

// Elements of a product that depend on undefined registers: of C's place, A's row or B's column.
struct UndefinedProduct {
  u64 rows = 0, columns = 0, elements[32] = {};
  Origin from;
  void add(Warp& w, const Reg& r, u32 index, const WmmaMatrix& m, size_t role) {
    u32 bad = w.bad_source(r, kAllLanes, true), per = m.register_elements();
    if (bad && !from) from = w.origin(r);
    for (; bad; bad &= bad - 1)
      for (u32 e = index * per; e < (index + 1) * per; ++e) {
        RowColumn at = wmma_place(m, m.registers() * per, u32(std::countr_zero(bad)), e);
        if (role == 1) rows |= u64{1} << at.row;
        else if (role == 2) columns |= u64{1} << at.col;
        else elements[at.row] |= u64{1} << at.col;
      }
  }
  u32 lanes(u32 index, const WmmaMatrix& m) const {  // of a register of D
    u32 bad = 0, per = m.register_elements();
    for (u32 lane = 0; lane < 32; ++lane)
      for (u32 e = index * per; e < (index + 1) * per; ++e) {
        RowColumn at = wmma_place(m, m.registers() * per, lane, e);
        bool depends = (rows >> at.row | columns >> at.col | elements[at.row] >> at.col) & 1;
        bad |= u32{depends} << lane;
      }
    return bad;
  }
};

void multiply(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  const auto& m = in.modifiers.as<WmmaProduct>();
  WmmaMatrix dabc[4];
  m.matrices(dabc);
  u32 results = dabc[0].registers(), bad = 0;
  std::vector<uint8_t*> registers;
  for (const Reg& r : in.list) registers.push_back(w.reg<uint8_t>(r));
  for (size_t i = results; i < in.list.size(); ++i) bad |= w.state[in.list[i].index].bad;
  UndefinedProduct undefined;
  size_t at = results;
  for (size_t role = 1; bad && role < 4; ++role)
    for (u32 i = 0; i < dabc[role].registers(); ++i)
      undefined.add(w, in.list[at++], i, dabc[role], role);
  wmma_multiply(m, registers.data());
  for (u32 i = 0; i < results; ++i) {
    w.written(in.list[i], kAllLanes, bad ? undefined.lanes(i, dabc[0]) : 0);
    if (bad) w.set_origin(in.list[i], undefined.from);
  }
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
  WmmaProduct m{};
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
  WmmaMatrix dabc[4];
  m.matrices(dabc);
  for (size_t i = 0; i < 4; ++i)
    add_matrix(d, i, dabc[i].register_bits(), i == 0, dabc[i].registers());
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
