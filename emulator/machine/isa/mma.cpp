// mma.sync, ldmatrix, stmatrix, movmatrix.
#include "machine/isa/mma.h"

#include <bit>
#include <cstdio>

#include "machine/core/memory.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"
#include "tensor/wmma.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

struct Mma {
  MmaType a, b;
  MmaAcc accumulator;
  bool satfinite;
  uint8_t k;
  u32 a_bytes() const { return k * static_cast<u32>(mma_bytes(a)); }  // of a row
  size_t a_registers() const { return a_bytes() / 8; }
  size_t b_registers() const { return a_bytes() / 16; }
  size_t acc_registers() const { return accumulator == MmaAcc::f16 ? 2 : 4; }
};
// Undefined rows of A and columns of B make undefined rows and columns of D, and C its elements.
void carry_undefined(Warp& w, const Inst& in, const Mma& m, u32 (&undefined)[4], Origin* from) {
  u32 rows = 0, columns = 0;
  size_t nd = m.acc_registers(), b = nd + m.a_registers(), c = b + m.b_registers();
  for (size_t i = nd; i < in.list.size(); ++i) {
    u32 bad = w.bad_source(in.list[i], kAllLanes, true);
    if (bad && !*from) *from = w.origin(in.list[i]);
    if (i >= c) undefined[i - c] = bad;
    else
      for (; bad; bad &= bad - 1) {
        u32 lane = static_cast<u32>(std::countr_zero(bad));
        if (i < b) rows |= 1u << (lane / 4 + 8 * ((i - nd) % 2));
        else columns |= 1u << lane / 4;
      }
  }
  int elements = m.accumulator == MmaAcc::f16 ? 2 : 1;
  for (size_t i = 0; i < nd; ++i)
    for (int lane = 0; lane < 32; ++lane)
      for (int e = 0; e < elements; ++e) {
        Element at = c_fragment_element(lane, static_cast<int>(i) * elements + e);
        undefined[i] |= u32{(rows >> at.row & 1) || (columns >> at.col & 1)} << lane;
      }
}

// list: D, A, B, C
void mma(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  const auto& m = in.modifiers.as<Mma>();
  const u32* regs[16];
  for (size_t i = 0; i < in.list.size(); ++i) regs[i] = w.reg<u32>(in.list[i]);
  u32* d[4];
  size_t nd = m.acc_registers(), na = m.a_registers(), nb = m.b_registers();
  for (size_t i = 0; i < nd; ++i) d[i] = w.reg<u32>(in.list[i]);
  u32 bad = 0, undefined[4] = {};
  Origin from;
  for (size_t i = nd; i < in.list.size(); ++i) bad |= w.state[in.list[i].index].bad;
  if (bad) carry_undefined(w, in, m, undefined, &from);
  const char* why = mma_sync(m.a, m.b, m.accumulator, m.k, regs + nd, regs + nd + na,
                             regs + nd + na + nb, d, m.satfinite, w.m->settings.fp8);
  if (why) fault("not-implemented", in.ptx->text() + ": " + why);
  for (size_t i = 0; i < nd; ++i) {
    w.written(in.list[i], kAllLanes, undefined[i]);
    if (bad) w.set_origin(in.list[i], from);
  }
  w.counters().flop += 2ull * 16 * 8 * m.k;
}

// The other shapes.
void mma_elements(Warp& w, const Inst& in) {
  const auto& p = in.modifiers.as<ElementProduct>();
  multiply_registers(w, in, mma_registers(p).d, [&](uint8_t* const* r) { mma_multiply(p, r); });
  w.counters().flop += 2ull * p.m * p.n * p.k;
}

struct MatrixCopy {
  uint8_t matrices;
  bool transposed, shared;  // shared: the address is in a shared space, else generic
};
struct Rows {
  uint8_t* data[32];
  SharedPlace place[32];
  u32 undefined[32] = {};  // bytes, a bit each
  u32 any_undefined = 0;
  Origin from;
};
void rows_of(Warp& w, const Inst& in, bool store, Rows* rows) {
  u64 address[32];
  addresses(w, in, address);
  const auto& m = in.modifiers.as<MatrixCopy>();
  u32 count = m.matrices * 8u;
  u64 counted[32];
  for (u32 lane = 0; lane < 32; ++lane) {
    if (lane >= count) {
      rows->data[lane] = nullptr;
      continue;
    }
    u64 at = address[lane];
    int i = static_cast<int>(lane);
    if (!m.shared && generic_space(&at) != Space::shared)
      fault_at("shared-out-of-bounds", "the address is not in shared memory", i, at);
    check_aligned(at, 16, i);
    SharedPlace place = shared_place(w, at, i);
    if (store) check_no_mbarrier(*place.cta, place.offset, 16, i);
    SharedMemory& shared = *place.cta->shared;
    if (store) shared.write(place.offset, 16, w.actor, i, Writer::generic);
    else rows->any_undefined |= rows->undefined[lane] = shared.read(place.offset, 16, w.actor, i);
    if (rows->any_undefined && !rows->from)
      rows->from = w.read_undefined(shared, place.offset, 16, i);
    rows->place[lane] = place;
    rows->data[lane] = shared.data() + place.offset;
    counted[lane] = at;
  }
  count_shared(w, counted, count == 32 ? kAllLanes : (1u << count) - 1, 16);
}

// The same copies of what is undefined, where a byte that is not 0 stands for an undefined one.
struct Image {
  uint8_t bytes[32][16] = {};
  uint8_t* rows[32];
  u32 lanes[4][32] = {};
  u32* registers[4];
  Image() {
    for (int i = 0; i < 32; ++i) rows[i] = bytes[i];
    for (int i = 0; i < 4; ++i) registers[i] = lanes[i];
  }
};
void load_undefined(Warp& w, const Inst& in, const MatrixCopy& m, const Rows& rows) {
  Image image;
  for (u32 row = 0; row < m.matrices * 8u; ++row)
    for (u32 i = 0; i < 16; ++i) image.bytes[row][i] = rows.undefined[row] >> i & 1;
  ldmatrix(m.matrices, m.transposed, image.rows, image.registers);
  for (size_t k = 0; k < in.list.size(); ++k)
    for (int lane = 0; lane < 32; ++lane)
      if (image.lanes[k][lane]) w.undefined_results.push_back({in.list[k], 1u << lane, rows.from});
}
void store_undefined(Warp& w, const Inst& in, const MatrixCopy& m, const Rows& rows) {
  Image image;
  Origin from{w.program, &in, Origin::kRegister};
  for (size_t k = 0; k < in.list.size(); ++k) {
    u32 bad = w.state[in.list[k].index].bad;
    if (Origin known = w.origin(in.list[k]); bad && known) from = known;
    for (; bad; bad &= bad - 1) image.lanes[k][std::countr_zero(bad)] = kAllLanes;
  }
  stmatrix(m.matrices, m.transposed, image.registers, image.rows);
  for (u32 row = 0; row < m.matrices * 8u; ++row)
    for (u32 i = 0; i < 16; ++i)
      if (image.bytes[row][i])
        rows.place[row].cta->shared->forget(rows.place[row].offset + i, 1, from);
}

void load(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  Rows rows;
  rows_of(w, in, false, &rows);
  u32* regs[4];
  for (size_t i = 0; i < in.list.size(); ++i) regs[i] = w.reg<u32>(in.list[i]);
  const auto& m = in.modifiers.as<MatrixCopy>();
  ldmatrix(m.matrices, m.transposed, rows.data, regs);
  if (rows.any_undefined) load_undefined(w, in, m, rows);
}
void store(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  Rows rows;
  rows_of(w, in, true, &rows);
  const u32* regs[4];
  for (size_t i = 0; i < in.list.size(); ++i) regs[i] = w.reg<u32>(in.list[i]);
  const auto& m = in.modifiers.as<MatrixCopy>();
  stmatrix(m.matrices, m.transposed, regs, rows.data);
  if (w.undefined) store_undefined(w, in, m, rows);
}
void transpose(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  movmatrix(w.reg<u32>(in.s[0]), w.reg<u32>(in.d[0]));
  if (!w.undefined) return;
  u32 image[32];
  for (u32 i = 0; i < 32; ++i) image[i] = w.undefined >> i & 1 ? kAllLanes : 0;
  movmatrix(image, image);
  w.undefined = 0;
  for (u32 i = 0; i < 32; ++i) w.undefined |= u32{image[i] != 0} << i;
}

bool decode_matrix_copy(Decoder& d, bool is_load) {
  Inst& out = *d.out;
  d.take("sync"), d.take("aligned");
  if (!d.take("m8n8")) d.unsupported("shape");
  MatrixCopy m{};
  int matrices = d.take_one("x1 x2 x4");
  if (matrices < 0) d.unsupported("shape");
  m.matrices = static_cast<uint8_t>(1 << matrices);
  m.transposed = d.take("trans");
  m.shared = d.take_one("shared shared::cta") >= 0;
  if (!d.take("b16")) d.unsupported("type");
  d.finish();
  out.modifiers.store(m);
  d.add_address(is_load ? 1 : 0, m.shared ? Space::shared : Space::none);
  d.add_list(d.operand(is_load ? 0 : 1), 32, is_load ? ListUse::written : ListUse::read);
  if (out.list.size() != m.matrices)
    throw PtxError(d.in->line, d.in->text() + ": wrong number of registers");
  out.carries = !is_load;
  out.run = is_load ? load : store;
  return true;
}

struct Operands {  // of mma.sync, as PTX orders them
  Type d, a, b, c;
};

// The shapes of which tensor/mma.h knows; false: others.
bool decode_common_mma(Decoder& d, const MatrixShape& shape, const Operands& t) {
  u32 k_bits = shape.k * t.a.bits;
  bool small = t.a.bits == 4 || t.a.bits == 1;
  if (shape.m != 16 || (k_bits != 128 && k_bits != 256) || small || t.a.bits == 64) return false;
  Mma m{};
  m.k = static_cast<uint8_t>(shape.k);
  m.satfinite = d.take("satfinite");
  m.a = mma_operand_type(d, t.a), m.b = mma_operand_type(d, t.b);
  m.accumulator = t.d.name == "f32" ? MmaAcc::f32 : t.d.name == "f16" ? MmaAcc::f16 : MmaAcc::s32;
  d.out->modifiers.store(m);
  size_t registers[] = {m.acc_registers(), m.a_registers(), m.b_registers(), m.acc_registers()};
  for (size_t i = 0; i < 4; ++i) add_matrix(d, i, 32, i == 0, registers[i]);
  d.out->run = mma;
  return true;
}

void decode_other_mma(Decoder& d, const MatrixShape& shape, const Operands& t) {
  ElementProduct p{shape.m,
                   shape.n,
                   shape.k,
                   matrix_type(d, t.a),
                   matrix_type(d, t.b),
                   matrix_type(d, t.c),
                   matrix_type(d, t.d),
                   BitOp::none,
                   d.take("satfinite")};
  if (!mma_exists(p)) d.unsupported("shape of this type");
  if (t.a.bits == 1) p.bit_op = take_bit_op(d);
  if (t.a.bits == 64) d.take("rn");
  d.out->modifiers.store(p);
  const u32 bits = t.a.bits == 64 ? 64 : 32;
  const MmaRegisters count = mma_registers(p);
  const size_t registers[] = {count.d, count.a, count.b, count.d};
  for (size_t i = 0; i < 4; ++i) add_matrix(d, i, bits, i == 0, registers[i]);
  d.out->run = mma_elements;
}

bool decode_mma_sync(Decoder& d) {
  if (d.take_one("sp sp::ordered_metadata") >= 0) d.unsupported("sparse matrices");
  d.take("sync"), d.take("aligned");
  MatrixShape shape = take_shape(d);
  if (!d.take("row") || !d.take("col")) d.unsupported("layout");
  Operands t;
  t.d = d.take_type(), t.a = d.take_type(), t.b = d.take_type(), t.c = d.take_type();
  if (t.d.name != t.c.name) d.unsupported("different types of C and D");
  if (!decode_common_mma(d, shape, t)) decode_other_mma(d, shape, t);
  d.finish();
  d.out->checks_itself = true;
  return true;
}

}  // namespace

bool whole_warp(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, in.ptx->text().c_str())) return false;
  if (w.live != kAllLanes)
    fault("missing-lane", in.ptx->text() + " needs all 32 lanes of the warp");
  return true;
}

MmaType mma_operand_type(const Decoder& d, const Type& t) {
  static constexpr struct {
    const char* name;
    MmaType type;
  } kTypes[] = {{"bf16", MmaType::bf16}, {"f16", MmaType::f16},   {"tf32", MmaType::tf32},
                {"e4m3", MmaType::e4m3}, {"e5m2", MmaType::e5m2}, {"s8", MmaType::s8},
                {"u8", MmaType::u8}};
  for (const auto& k : kTypes)
    if (t.name == k.name) return k.type;
  d.unsupported("operand type");
}

ElementType matrix_type(const Decoder& d, const Type& t) {
  static constexpr const char* kNames[] = {"f16", "bf16", "tf32", "s8",  "u8", "s4",
                                           "u4",  "b1",   "f64",  "f32", "s32"};
  for (u32 i = 0; i < std::size(kNames); ++i)
    if (t.name == kNames[i]) return static_cast<ElementType>(i);
  d.unsupported("operand type");
}

MatrixShape take_shape(Decoder& d) {
  for (const std::string& mod : d.in->mods) {
    unsigned m, n, k;
    char end;
    if (std::sscanf(mod.c_str(), "m%3un%3uk%3u%c", &m, &n, &k, &end) != 3) continue;
    d.take(mod.c_str());
    return {static_cast<uint16_t>(m), static_cast<uint16_t>(n), static_cast<uint16_t>(k)};
  }
  d.unsupported("no shape");
}

BitOp take_bit_op(Decoder& d) {
  int op = d.take_one("xor and");
  if (op < 0 || !d.take("popc")) d.unsupported("operation on bits");
  return op == 0 ? BitOp::xor_ : BitOp::and_;
}

void add_matrix(Decoder& d, size_t i, uint32_t bits, bool written, size_t registers) {
  const PtxOperand& o = d.operand(i);
  auto add = [&](const PtxOperand& p) {
    d.out->list.push_back(written ? d.target(p, bits) : d.source(p, bits));
  };
  size_t before = d.out->list.size();
  if (o.kind == PtxOperand::Kind::group)
    for (const auto& p : o.parts) add(p);
  else add(o);
  if (d.out->list.size() - before != registers)
    throw PtxError(d.in->line, d.in->text() + ": operand " + std::to_string(i) + " has " +
                                   std::to_string(d.out->list.size() - before) +
                                   " registers, expected " + std::to_string(registers));
}

bool decode_mma(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "ldmatrix" || op == "stmatrix") return decode_matrix_copy(d, op == "ldmatrix");
  if (op == "movmatrix") {
    d.take("sync"), d.take("aligned"), d.take("m8n8"), d.take("trans"), d.take("b16");
    d.finish();
    d.add_target(0, 32), d.add_source(1, 32);
    out.propagates = true;
    out.run = transpose;
    return true;
  }
  return op == "mma" && decode_mma_sync(d);
}

}  // namespace l4k::emu
