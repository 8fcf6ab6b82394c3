// mma.sync, ldmatrix, stmatrix, movmatrix.
#include "machine/isa/mma.h"

#include <bit>

#include "machine/core/memory.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

bool whole_warp(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, in.ptx->text().c_str())) return false;
  if (w.live != kAllLanes)
    fault("missing-lane", in.ptx->text() + " needs all 32 lanes of the warp");
  return true;
}

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
// list: D, A, B, C
void mma(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  const auto& m = in.modifiers.as<Mma>();
  const u32* regs[16];
  for (size_t i = 0; i < in.list.size(); ++i) regs[i] = w.reg<u32>(in.list[i]);
  u32* d[4];
  size_t nd = m.acc_registers(), na = m.a_registers(), nb = m.b_registers();
  for (size_t i = 0; i < nd; ++i) d[i] = w.reg<u32>(in.list[i]);
  for (size_t i = nd; i < in.list.size(); ++i) w.use(in.list[i], kAllLanes);
  const char* why = mma_sync(m.a, m.b, m.accumulator, m.k, regs + nd, regs + nd + na,
                             regs + nd + na + nb, d, m.satfinite, w.m->settings.fp8);
  if (why) fault("not-implemented", in.ptx->text() + ": " + why);
  for (size_t i = 0; i < nd; ++i) w.written(in.list[i], kAllLanes);
  w.counters().flop += 2ull * 16 * 8 * m.k;
}

struct MatrixCopy {
  uint8_t matrices;
  bool transposed, shared;  // shared: the address is in a shared space, else generic
};
void rows_of(Warp& w, const Inst& in, bool store, uint8_t* (&rows)[32]) {
  u64 address[32];
  addresses(w, in, address);
  const auto& m = in.modifiers.as<MatrixCopy>();
  u32 count = m.matrices * 8u;
  u64 counted[32];
  for (u32 lane = 0; lane < 32; ++lane) {
    if (lane >= count) {
      rows[lane] = nullptr;
      continue;
    }
    u64 at = address[lane];
    int i = static_cast<int>(lane);
    if (!m.shared && generic_space(&at) != Space::shared)
      fault_at("shared-out-of-bounds", "the address is not in shared memory", i, at);
    check_aligned(at, 16, i);
    SharedPlace place = shared_place(w, at, i);
    if (store) check_no_mbarrier(*place.cta, place.offset, 16, i);
    if (store) place.cta->shared->write(place.offset, 16, w.actor, i, Writer::generic);
    else place.cta->shared->read(place.offset, 16, w.actor, i);
    rows[lane] = place.cta->shared->data() + place.offset;
    counted[lane] = at;
  }
  count_shared(w, counted, count == 32 ? kAllLanes : (1u << count) - 1, 16);
}
void load(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  uint8_t* rows[32];
  rows_of(w, in, false, rows);
  u32* regs[4];
  for (size_t i = 0; i < in.list.size(); ++i) regs[i] = w.reg<u32>(in.list[i]);
  const auto& m = in.modifiers.as<MatrixCopy>();
  ldmatrix(m.matrices, m.transposed, rows, regs);
}
void store(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  uint8_t* rows[32];
  rows_of(w, in, true, rows);
  const u32* regs[4];
  for (size_t i = 0; i < in.list.size(); ++i) regs[i] = w.reg<u32>(in.list[i]);
  const auto& m = in.modifiers.as<MatrixCopy>();
  stmatrix(m.matrices, m.transposed, regs, rows);
}
void transpose(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  movmatrix(w.reg<u32>(in.s[0]), w.reg<u32>(in.d[0]));
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
  out.run = is_load ? load : store;
  return true;
}

}  // namespace

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

bool decode_mma(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "ldmatrix" || op == "stmatrix") return decode_matrix_copy(d, op == "ldmatrix");
  if (op == "movmatrix") {
    d.take("sync"), d.take("aligned"), d.take("m8n8"), d.take("trans"), d.take("b16");
    d.finish();
    d.add_target(0, 32), d.add_source(1, 32);
    out.run = transpose;
    return true;
  }
  if (op != "mma") return false;
  d.take("sync"), d.take("aligned");
  int shape = d.take_one("m16n8k4 m16n8k8 m16n8k16 m16n8k32");
  if (shape < 0) d.unsupported("shape");
  Mma m{};
  m.k = static_cast<uint8_t>(4 << shape);
  if (!d.take("row") || !d.take("col")) d.unsupported("layout");
  m.satfinite = d.take("satfinite");
  Type acc = d.take_type(), at = d.take_type(), bt = d.take_type(), ct = d.take_type();
  d.finish();
  if (acc.name != ct.name) d.unsupported("different types of C and D");
  m.a = mma_operand_type(d, at), m.b = mma_operand_type(d, bt);
  m.accumulator = acc.name == "f32" ? MmaAcc::f32 : acc.name == "f16" ? MmaAcc::f16 : MmaAcc::s32;
  if (m.a_bytes() != 16 && m.a_bytes() != 32) d.unsupported("shape");
  out.modifiers.store(m);
  size_t expected[] = {m.acc_registers(), m.a_registers(), m.b_registers(), m.acc_registers()};
  for (size_t i = 0; i < 4; ++i) {
    size_t before = out.list.size();
    d.add_list(d.operand(i), 32, ListUse::read);
    if (out.list.size() - before != expected[i])
      throw PtxError(d.in->line,
                     d.in->text() + ": wrong number of registers in operand " + std::to_string(i));
  }
  const PtxOperand& dst = d.operand(0);
  if (dst.kind == PtxOperand::Kind::group)
    for (const auto& p : dst.parts) d.target(p, 32);
  out.checks_itself = true;
  out.run = mma;
  return true;
}

}  // namespace l4k::emu
