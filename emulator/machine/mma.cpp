// mma.sync, ldmatrix, stmatrix, movmatrix.
#include "tensor/mma.h"

#include <bit>

#include "machine/decode.h"

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

// in.a: A type | B type << 4 | MmaAcc << 8 | satfinite << 12; in.b: k; list: D, A, B, C
void mma(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  auto a = static_cast<MmaType>(in.a & 15), b = static_cast<MmaType>(in.a >> 4 & 15);
  auto acc = static_cast<MmaAcc>(in.a >> 8 & 15);
  const u32* regs[16];
  for (size_t i = 0; i < in.list.size(); ++i) regs[i] = w.reg<u32>(in.list[i]);
  u32* d[4];
  size_t nd = acc == MmaAcc::f16 ? 2 : 4, na = in.b * static_cast<u32>(mma_bytes(a)) / 8,
         nb = na / 2;
  for (size_t i = 0; i < nd; ++i) d[i] = w.reg<u32>(in.list[i]);
  for (size_t i = nd; i < in.list.size(); ++i) w.use(in.list[i], kAllLanes);
  const char* why = mma_sync(a, b, acc, static_cast<int>(in.b), regs + nd, regs + nd + na,
                             regs + nd + na + nb, d, in.a >> 12 & 1, w.m->settings.fp8);
  if (why) fault("not-implemented", in.ptx->text() + ": " + why);
  for (size_t i = 0; i < nd; ++i) w.written(in.list[i], kAllLanes);
  w.counters().flop += 2ull * 16 * 8 * in.b;
}

// in.a: matrices, in.b: transposed; in.target: the address is in a shared space
void rows_of(Warp& w, const Inst& in, bool store, uint8_t* (&rows)[32]) {
  u64 address[32];
  addresses(w, in, in.c, address);
  u32 count = in.a * 8;
  u64 counted[32];
  for (u32 lane = 0; lane < 32; ++lane) {
    if (lane >= count) {
      rows[lane] = nullptr;
      continue;
    }
    u64 at = address[lane];
    int i = static_cast<int>(lane);
    if (!in.target && generic_space(&at) != Space::shared)
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
  ldmatrix(static_cast<int>(in.a), in.b != 0, rows, regs);
}
void store(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  uint8_t* rows[32];
  rows_of(w, in, true, rows);
  const u32* regs[4];
  for (size_t i = 0; i < in.list.size(); ++i) regs[i] = w.reg<u32>(in.list[i]);
  stmatrix(static_cast<int>(in.a), in.b != 0, regs, rows);
}
void transpose(Warp& w, const Inst& in) {
  if (!whole_warp(w, in)) return;
  movmatrix(w.reg<u32>(in.s[0]), w.reg<u32>(in.d[0]));
}

bool decode_matrix_copy(Decoder& d, bool is_load) {
  Inst& out = *d.out;
  d.take("sync"), d.take("aligned");
  if (!d.take("m8n8")) d.unsupported("shape");
  out.a = 1u << d.take_one("x1 x2 x4");
  out.b = d.take("trans");
  out.target = d.take_one("shared shared::cta") >= 0;
  if (!d.take("b16")) d.unsupported("type");
  d.finish();
  d.add_address(is_load ? 1 : 0, out.target ? Space::shared : Space::none);
  d.add_list(d.operand(is_load ? 0 : 1), 32, is_load ? 2 : 1);
  if (out.list.size() != out.a)
    throw PtxError(d.in->line, d.in->text() + ": wrong number of registers");
  out.run = is_load ? load : store;
  return true;
}

}  // namespace

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
  out.b = 4u << shape;
  if (!d.take("row") || !d.take("col")) d.unsupported("layout");
  bool satfinite = d.take("satfinite");
  Type acc = d.take_type(), at = d.take_type(), bt = d.take_type(), ct = d.take_type();
  d.finish();
  auto type = [&](const Type& t) {
    static constexpr const char* kNames[] = {"bf16", "f16", "tf32", "e4m3", "e5m2", "s8", "u8"};
    for (u32 i = 0; i < 7; ++i)
      if (t.name == kNames[i]) return i;
    d.unsupported("operand type");
  };
  if (acc.name != ct.name) d.unsupported("different types of C and D");
  u32 a = type(at), b = type(bt);
  MmaAcc kind = acc.name == "f32" ? MmaAcc::f32 : acc.name == "f16" ? MmaAcc::f16 : MmaAcc::s32;
  u32 bytes = out.b * static_cast<u32>(mma_bytes(static_cast<MmaType>(a)));
  if (bytes != 16 && bytes != 32) d.unsupported("shape");
  out.a = a | b << 4 | static_cast<u32>(kind) << 8 | (satfinite ? 1u << 12 : 0);
  size_t expected[] = {kind == MmaAcc::f16 ? 2u : 4u, bytes / 8, bytes / 16,
                       kind == MmaAcc::f16 ? 2u : 4u};
  for (size_t i = 0; i < 4; ++i) {
    size_t before = out.list.size();
    d.add_list(d.operand(i), 32, 1);
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
