// wgmma: issue, commit, wait. Every warp of the warpgroup performs its own 16 rows.
#include "machine/wgmma.h"

#include <bit>
#include <cstring>

#include "machine/decode.h"
#include "tensor/descriptor.h"
#include "tensor/multiply.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

enum class Acc : u32 { f32, f16, s32 };
// in.a: n; in.b: A type | B type << 4 | Acc << 8 | flags
enum : u32 {
  kTransA = 1 << 12,
  kTransB = 1 << 13,
  kNegative = 1 << 14,
  kSatfinite = 1 << 15,
  kRegisters = 1 << 16
};
struct Form {
  MmaType a, b;
  Acc acc;
  int n;
  u32 flags;
  explicit Form(const Inst& in)
      : a(static_cast<MmaType>(in.b & 15)),
        b(static_cast<MmaType>(in.b >> 4 & 15)),
        acc(static_cast<Acc>(in.b >> 8 & 15)),
        n(static_cast<int>(in.a)),
        flags(in.b) {}
  size_t acc_registers() const { return static_cast<size_t>(n) / (acc == Acc::f16 ? 4 : 2); }
};

constexpr int kRows = 16;

void gather(Warp& w, u64 desc, int rows, MmaType type, bool transposed, uint8_t* packed,
            std::vector<u32>* chunks) {
  SharedMemory& s = *w.cta->shared;
  std::string why =
      gather_operand(s.data(), s.size(), desc, rows, type, transposed, packed, chunks);
  if (!why.empty()) fault("shared-out-of-bounds", why);
}

// Reads the operands and writes the accumulators.
void compute(Warp& w, PendingWgmma& op) {
  const Inst& in = *op.inst;
  Form f(in);
  alignas(32) uint8_t a[64 * 32], b[256 * 32];
  u32 quarter = w.index % 4;
  const uint8_t* mine = a;
  if (f.flags & kRegisters) {
    for (u32 r = 0; r < 4; ++r) {
      const u32* reg = w.reg<u32>(in.list[f.acc_registers() + r]);
      for (u32 lane = 0; lane < 32; ++lane)
        std::memcpy(a + (lane / 4 + 8 * (r % 2)) * 32 + lane % 4 * 4 + 16 * (r / 2), &reg[lane], 4);
    }
  } else {
    gather(w, op.descriptor_a, 64, f.a, f.flags & kTransA, a, nullptr);
    mine = a + quarter * kRows * 32;
  }
  gather(w, op.descriptor_b, f.n, f.b, f.flags & kTransB, b, nullptr);
  alignas(32) u32 tile[kRows * 256] = {};
  auto n = static_cast<u32>(f.n);
  size_t count = f.acc_registers();
  auto place = [n](u32 lane, u32 element) {  // of a 32-bit accumulator
    return (lane / 4 + 8 * (element / 2 % 2)) * n + 8 * (element / 4) + lane % 4 * 2 + element % 2;
  };
  bool half = f.acc == Acc::f16;
  if (op.scale_d)
    for (u32 r = 0; r < count; ++r) {
      const u32* reg = w.reg<u32>(in.list[r]);
      for (u32 lane = 0; lane < 32; ++lane) {
        if (!half) {
          tile[place(lane, r)] = reg[lane];
        } else {
          tile[place(lane, 2 * r)] = bits(f16_to_float(static_cast<uint16_t>(reg[lane])));
          tile[place(lane, 2 * r + 1)] = bits(f16_to_float(static_cast<uint16_t>(reg[lane] >> 16)));
        }
      }
    }
  if (f.acc == Acc::s32)
    multiply_int(f.a, f.b, kRows, f.n, 32, mine, b, reinterpret_cast<int32_t*>(tile),
                 f.flags & kSatfinite);
  else
    multiply_float(f.a, f.b, kRows, f.n, 32, mine, b, reinterpret_cast<float*>(tile),
                   f.flags & kNegative, w.m->settings.fp8);
  for (u32 r = 0; r < count; ++r) {
    u32* reg = w.reg<u32>(in.list[r]);
    for (u32 lane = 0; lane < 32; ++lane)
      reg[lane] = !half ? tile[place(lane, r)]
                        : u32{float_to_f16(from_bits(tile[place(lane, 2 * r)]))} |
                              u32{float_to_f16(from_bits(tile[place(lane, 2 * r + 1)]))} << 16;
  }
  op.computed = true;
  for (auto& move : op.moves) {
    if (move.done) continue;
    move.done = true;
    for (u32 l = move.lanes; l; l &= l - 1) {
      u32 i = static_cast<u32>(std::countr_zero(l)) * move.bytes;
      std::memcpy(w.reg<uint8_t>(move.to) + i, w.reg<uint8_t>(move.from) + i, move.bytes);
    }
  }
}

void mark_in_flight(Warp& w, const PendingWgmma& op) {
  Form f(*op.inst);
  for (size_t r = 0; r < op.inst->list.size(); ++r) {
    RegState& s = w.state[op.inst->list[r].reg];
    if (r < f.acc_registers()) {
      s.bad = kAllLanes;
      s.tag = static_cast<u32>(Busy::accumulator) << 30;
    } else if (s.busy() == Busy::none) {
      s.tag |= static_cast<u32>(Busy::fragment) << 30;
    }
  }
  for (const auto& move : op.moves) {
    RegState& s = w.state[move.to.reg];
    s.bad |= move.lanes;
    s.tag = static_cast<u32>(Busy::alias) << 30;
  }
}

// The registers of a completed operation are free again.
void complete(Warp& w, PendingWgmma& op) {
  Form f(*op.inst);
  for (size_t r = 0; r < op.inst->list.size(); ++r) {
    RegState& s = w.state[op.inst->list[r].reg];
    if (r < f.acc_registers()) s.bad = 0, s.tag = RegState::kResult;
    else if (s.busy() == Busy::fragment) s.tag &= 0x3fffffff;
  }
  for (const auto& move : op.moves) {
    RegState& s = w.state[move.to.reg];
    s.bad &= ~move.lanes;
    s.tag = RegState::kResult;
  }
}

// The four warps must execute the same instructions with the same operands.
void agree(Warp& w, const Inst& in, u64 seq, u64 descriptor_b) {
  auto& groups = w.cta->wgmma_issues;
  groups.resize((w.cta->warps.size() + 3) / 4);
  u32 group = w.index / 4, bit = 1u << w.index % 4;
  if ((group + 1) * 4 > w.cta->warps.size())
    fault("missing-lane", "wgmma in a warpgroup of fewer than four warps");
  auto& issues = groups[group];
  for (auto it = issues.begin(); it != issues.end(); ++it) {
    if (it->seq != seq) continue;
    if (it->inst != &in || it->descriptor_b != descriptor_b)
      fault("warpgroup-divergence",
            "the warps of a warpgroup execute different wgmma: " + it->inst->ptx->text() +
                " with descriptor " + hex(it->descriptor_b) + " elsewhere, " + hex(descriptor_b) +
                " here");
    it->warps |= bit;
    if (it->warps == 15) issues.erase(it);
    return;
  }
  issues.push_back({seq, descriptor_b, &in, bit});
}

void issue(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, in.ptx->text().c_str())) return;
  if (w.live != kAllLanes) fault("missing-lane", "wgmma needs all 32 lanes of the warp");
  if (!w.wgmma_fenced) fault("wgmma-fence-missing", "wgmma.mma_async before any wgmma.fence");
  Form f(in);
  auto op = std::make_unique<PendingWgmma>();
  op->inst = &in;
  op->seq = ++w.wgmma_seq;
  for (int i = 0; i < in.sources; ++i) w.use(in.s[i], kAllLanes);
  auto uniform = [&](const Src& s) {
    const u64* v = w.reg<u64>(s);
    for (int i = 1; i < 32; ++i)
      if (v[i] != v[0]) fault("warpgroup-divergence", "the descriptor differs between lanes", i);
    return v[0];
  };
  op->descriptor_b = uniform(in.s[0]);
  if (!(f.flags & kRegisters)) op->descriptor_a = uniform(in.s[in.sources - 1]);
  if (in.target) {
    u32 p = *w.reg<u32>(in.s[1]);
    if (p && p != kAllLanes) fault("warpgroup-divergence", "scale-d differs between lanes");
    op->scale_d = p != 0;
  }
  agree(w, in, op->seq, op->descriptor_b);
  for (size_t r = 0; r < in.list.size(); ++r) {
    const RegState& s = w.state[in.list[r].reg];
    bool accumulator = r < f.acc_registers();
    if (accumulator && (s.busy() == Busy::accumulator || s.busy() == Busy::alias)) continue;
    if (accumulator && s.busy() == Busy::fragment) w.busy_write(in.list[r]);
    if (s.bad && (op->scale_d || !accumulator)) w.bad_source(in.list[r], kAllLanes, false);
    if (s.fence() == w.fence_count)
      fault("wgmma-fence-missing", "register " + w.program->ptx->registers[in.list[r].reg].name +
                                       " was written or read after the last wgmma.fence");
  }
  alignas(32) uint8_t scratch[256 * 32];
  std::vector<u32> chunks;
  if (!(f.flags & kRegisters)) {
    gather(w, op->descriptor_a, 64, f.a, f.flags & kTransA, scratch, &chunks);
    size_t first = w.index % 4 * 32;
    op->chunks.assign(chunks.begin() + static_cast<ptrdiff_t>(first),
                      chunks.begin() + static_cast<ptrdiff_t>(first + 32));
  }
  gather(w, op->descriptor_b, f.n, f.b, f.flags & kTransB, scratch, &chunks);
  op->chunks.insert(op->chunks.end(), chunks.begin(), chunks.end());
  SharedMemory& shared = *w.cta->shared;
  for (u32 c : op->chunks) {
    shared.check_async_read(c, 16, w.actor, w.m->settings.strict);
    shared.begin_pending_read(c, 16);
  }
  u32 k = 32 / static_cast<u32>(mma_bytes(f.a));
  w.counters().flop += 2ull * kRows * static_cast<u32>(f.n) * k;
  if (w.m->settings.mode == Mode::early) compute(w, *op);
  mark_in_flight(w, *op);
  w.wgmmas.push_back(std::move(op));
  ++w.m->progress;
}

void fence(Warp& w, const Inst&) {
  if (!w.gather(~w.dead, "wgmma.fence")) return;
  w.wgmma_fenced = true;
  if (++w.fence_count >= 0x1fffffff) fault("not-implemented", "more than 2^29 wgmma.fence");
}
void commit(Warp& w, const Inst&) {
  if (!w.gather(~w.dead, "wgmma.commit_group")) return;
  for (auto& op : w.wgmmas)
    if (op->group == ~0u) op->group = w.wgmma_group;
  ++w.wgmma_group;
}
// An operation is the warpgroup's: when it is complete for one warp, it has read its operands for
// all four. (One thread of a warpgroup may therefore release a stage after its own wait.)
void wait(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, "wgmma.wait_group")) return;
  u64 last = 0;
  for (const auto& op : w.wgmmas)
    if (op->group != ~0u && op->group + static_cast<u64>(in.imm) < w.wgmma_group) last = op->seq;
  if (last) {
    Cta& cta = *w.cta;
    u32 group = w.index / 4, engine = cta.agent + 1 + group;
    for (u32 i = group * 4; i < group * 4 + 4; ++i) {
      Warp& other = *cta.warps[i];
      if (other.wgmma_seq >= last) continue;
      if (other.exited) check_warpgroup_exit(other);
      return w.park(Wait::warpgroup);
    }
    bool first = true;
    for (u32 i = group * 4; i < group * 4 + 4; ++i)
      for (auto& op : cta.warps[i]->wgmmas) {
        if (op->seq > last) break;
        if (op->released) continue;
        if (first) ++cta.tensor_clock[group], first = false;
        if (!op->computed) compute(*cta.warps[i], *op);
        for (u32 c : op->chunks) {
          cta.shared->end_pending_read(c, 16);
          cta.shared->note_engine_read(c, engine << 22 | cta.tensor_clock[group], w.actor.seen);
        }
        op->released = true;
      }
    w.actor.seen[engine] = cta.tensor_clock[group];
    while (!w.wgmmas.empty() && w.wgmmas.front()->seq <= last) {
      complete(w, *w.wgmmas.front());
      w.wgmmas.pop_front();
    }
    for (const auto& op : w.wgmmas) mark_in_flight(w, *op);
    ++w.m->progress;
  }
  ++w.counters().waits;
}

MmaType operand_type(Decoder& d, const Type& t) {
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

bool decode_issue(Decoder& d) {
  Inst& out = *d.out;
  std::string shape;
  for (const auto& m : d.in->mods)
    if (m.rfind("m64n", 0) == 0) shape = m;
  int n = 0, k = 0;
  if (std::sscanf(shape.c_str(), "m64n%dk%d", &n, &k) != 2 || !d.take(shape.c_str()))
    d.unsupported("shape");
  bool satfinite = d.take("satfinite");
  Type acc = d.take_type();
  Type at = d.take_type(), bt = d.take_type();
  d.finish();
  MmaType a = operand_type(d, at), b = operand_type(d, bt);
  if (n < 8 || n > 256 || n % 8 || k * mma_bytes(a) != 32 || mma_bytes(a) != mma_bytes(b))
    throw PtxError(d.in->line, d.in->text() + ": impossible shape");
  Acc kind = acc.name == "f32" ? Acc::f32 : acc.name == "f16" ? Acc::f16 : Acc::s32;
  if (mma_is_int(a) != (kind == Acc::s32)) d.unsupported("accumulator type");
  out.a = static_cast<u32>(n);
  out.b = static_cast<u32>(a) | static_cast<u32>(b) << 4 | static_cast<u32>(kind) << 8 |
          (satfinite ? kSatfinite : 0u);
  out.checks_itself = true;
  out.run = issue;
  d.add_list(d.operand(0), 32, 1);
  if (out.list.size() != Form(out).acc_registers())
    throw PtxError(d.in->line, d.in->text() + ": " + std::to_string(out.list.size()) +
                                   " accumulator registers");
  for (const auto& p : d.operand(0).parts) d.target(p, 32);
  bool registers = d.operand(1).kind == PtxOperand::Kind::group;
  if (registers) {
    out.b |= kRegisters;
    if (d.operand(1).parts.size() != 4)
      throw PtxError(d.in->line, d.in->text() + ": A needs four registers");
    d.add_list(d.operand(1), 32, 1);
  }
  d.add_source(2, 64);
  size_t rest = 3;
  if (d.operands() > rest) {
    d.add_source(rest++, 1);
    out.target = 1;
  }
  if (!mma_is_int(a) && d.operands() > rest + 1) {
    auto scale = [&](size_t i) {
      auto v = static_cast<int64_t>(d.literal(i));
      if (v != 1 && v != -1) throw PtxError(d.in->line, d.in->text() + ": a scale is 1 or -1");
      return v < 0;
    };
    bool negative = scale(rest) != scale(rest + 1);
    rest += 2;
    if (negative) out.b |= kNegative;
  }
  if (d.operands() > rest) {
    if (!registers && d.literal(rest++)) out.b |= kTransA;
    if (d.operands() > rest && d.literal(rest++)) out.b |= kTransB;
  }
  if (!registers) d.add_source(1, 64);  // the last source
  return true;
}

}  // namespace

void defer_move(Warp& w, const Src& to, const Src& from, u32 bytes) {
  for (size_t i = w.wgmmas.size(); i-- > 0;) {
    PendingWgmma& op = *w.wgmmas[i];
    bool owner = false;
    size_t acc = Form(*op.inst).acc_registers();
    for (size_t r = 0; r < acc && !owner; ++r) owner = op.inst->list[r].reg == from.reg;
    for (const auto& move : op.moves) owner |= move.to.reg == from.reg;
    if (!owner) continue;
    op.moves.push_back({to, from, bytes, w.active, op.computed});
    RegState& s = w.state[to.reg];
    s.bad |= w.active;
    s.tag = static_cast<u32>(Busy::alias) << 30;
    return;
  }
}

void Warp::busy_write(const Src& d) {
  RegState& s = state[d.reg];
  if (s.busy() == Busy::alias) {  // the copy is overwritten before its value was needed
    for (auto& op : wgmmas)
      std::erase_if(op->moves, [&](const DeferredMove& m) { return m.to.reg == d.reg; });
    s.tag = 0;
    return;
  }
  fault("register-in-flight",
        "register " + program->ptx->registers[d.reg].name +
            (s.busy() == Busy::fragment ? " is written while a wgmma in flight reads it as A"
                                        : " is written while a wgmma accumulates into it"));
}

void compute_one(Warp& w) {
  for (auto& op : w.wgmmas) {
    if (op->computed) continue;
    if (op->group != ~0u) compute(w, *op);
    return;
  }
}

void check_warpgroup_exit(Warp& w) {
  u32 group = w.index / 4;
  if (group >= w.cta->wgmma_issues.size()) return;
  for (const auto& i : w.cta->wgmma_issues[group])
    if (!(i.warps >> w.index % 4 & 1))
      fault("missing-lane",
            "the warp ends, but the rest of its warpgroup executed " + i.inst->ptx->text());
}

bool decode_wgmma(Decoder& d) {
  if (d.in->opcode != "wgmma") return false;
  Inst& out = *d.out;
  d.take("sync"), d.take("aligned");
  int what = d.take_one("mma_async fence commit_group wait_group");
  if (what == 0) return decode_issue(d);
  if (what < 0) d.unsupported();
  d.finish();
  out.run = what == 1 ? fence : what == 2 ? commit : wait;
  if (what == 3) out.imm = static_cast<int64_t>(d.literal(0));
  return true;
}

}  // namespace l4k::emu
