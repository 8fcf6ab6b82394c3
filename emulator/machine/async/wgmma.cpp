// wgmma: issue, commit, wait. Every warp of the warpgroup performs its own 16 rows.
#include <bit>
#include <bitset>
#include <cstring>

#include "machine/async/families.h"
#include "machine/core/machine.h"
#include "machine/isa/mma.h"
#include "tensor/descriptor.h"
#include "tensor/multiply.h"
#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

struct Wgmma {
  MmaType a, b;
  MmaAcc accumulator;
  uint16_t n;
  bool a_in_registers, a_transposed, b_transposed;
  bool negative;     // the product of the scales of A and B
  bool satfinite;    // integers
  bool has_scale_d;  // s[1]
  size_t acc_registers() const { return n / (accumulator == MmaAcc::f16 ? 4u : 2u); }
};

constexpr int kRows = 16;

void gather(Warp& w, u64 desc, int rows, MmaType type, bool transposed, uint8_t* packed,
            std::vector<u32>* chunks) {
  SharedMemory& s = *w.cta->shared;
  std::string why =
      gather_operand(s.data(), s.size(), desc, rows, type, transposed, packed, chunks);
  if (!why.empty()) fault("shared-out-of-bounds", why);
}

// A's rows of the warp, 32 bytes each: from four registers, or from shared memory.
const uint8_t* gather_a(Warp& w, const PendingWgmma& op, const Wgmma& m, uint8_t (&a)[64 * 32]) {
  if (!m.a_in_registers) {
    gather(w, op.descriptor_a, 64, m.a, m.a_transposed, a, nullptr);
    return a + w.index % 4 * kRows * 32;
  }
  for (u32 r = 0; r < 4; ++r) {
    const u32* reg = w.reg<u32>(op.inst->list[m.acc_registers() + r]);
    for (u32 lane = 0; lane < 32; ++lane)
      std::memcpy(a + (lane / 4 + 8 * (r % 2)) * 32 + lane % 4 * 4 + 16 * (r / 2), &reg[lane], 4);
  }
  return a;
}

// Where an element of a lane's accumulators is in the warp's rows: rows of n 32-bit numbers.
u32 place(u32 n, u32 lane, u32 element) {
  return (lane / 4 + 8 * (element / 2 % 2)) * n + 8 * (element / 4) + lane % 4 * 2 + element % 2;
}

void load_accumulators(Warp& w, const Inst& in, const Wgmma& m, u32* tile) {
  for (u32 r = 0; r < m.acc_registers(); ++r) {
    const u32* reg = w.reg<u32>(in.list[r]);
    for (u32 lane = 0; lane < 32; ++lane) {
      if (m.accumulator != MmaAcc::f16) {
        tile[place(m.n, lane, r)] = reg[lane];
      } else {
        tile[place(m.n, lane, 2 * r)] = bits(f16_to_float(static_cast<uint16_t>(reg[lane])));
        tile[place(m.n, lane, 2 * r + 1)] =
            bits(f16_to_float(static_cast<uint16_t>(reg[lane] >> 16)));
      }
    }
  }
}

void store_accumulators(Warp& w, const Inst& in, const Wgmma& m, const u32* tile) {
  for (u32 r = 0; r < m.acc_registers(); ++r) {
    u32* reg = w.reg<u32>(in.list[r]);
    for (u32 lane = 0; lane < 32; ++lane)
      reg[lane] = m.accumulator != MmaAcc::f16
                      ? tile[place(m.n, lane, r)]
                      : u32{float_to_f16(from_bits(tile[place(m.n, lane, 2 * r)]))} |
                            u32{float_to_f16(from_bits(tile[place(m.n, lane, 2 * r + 1)]))} << 16;
  }
}

// Reads the operands and writes the accumulators, and whatever they have been moved to.
void compute(Warp& w, PendingWgmma& op) {
  const Inst& in = *op.inst;
  const auto m = in.modifiers.as<Wgmma>();
  alignas(32) uint8_t a[64 * 32], b[256 * 32];
  const uint8_t* mine = gather_a(w, op, m, a);
  gather(w, op.descriptor_b, m.n, m.b, m.b_transposed, b, nullptr);
  alignas(32) u32 tile[kRows * 256] = {};
  if (op.scale_d) load_accumulators(w, in, m, tile);
  if (m.accumulator == MmaAcc::s32)
    multiply_int(m.a, m.b, kRows, m.n, 32, mine, b, reinterpret_cast<int32_t*>(tile), m.satfinite);
  else
    multiply_float(m.a, m.b, kRows, m.n, 32, mine, b, reinterpret_cast<float*>(tile), m.negative,
                   w.m->settings.fp8);
  store_accumulators(w, in, m, tile);
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
  for (size_t r = 0; r < op.inst->list.size(); ++r) {
    RegState& s = w.state[op.inst->list[r].index];
    if (r < op.accumulators) {
      s.bad = kAllLanes;
      s.tag = RegState::busy_tag(Busy::accumulator);
    } else if (s.busy() == Busy::none) {
      s.set_busy(Busy::fragment);
    }
  }
  for (const auto& move : op.moves) {
    RegState& s = w.state[move.to.index];
    s.bad |= move.lanes;
    s.tag = RegState::busy_tag(Busy::alias);
  }
}

void settle_undefined(Warp& w, const PendingWgmma& op) {
  for (size_t r = 0; r < op.accumulators; ++r) {
    const Reg& d = op.inst->list[r];
    w.state[d.index].bad = op.undefined[r];
    if (op.undefined[r]) w.set_origin(d, op.undefined_from);
  }
}

// The registers of a completed operation are free again.
void complete(Warp& w, PendingWgmma& op) {
  for (size_t r = 0; r < op.inst->list.size(); ++r) {
    RegState& s = w.state[op.inst->list[r].index];
    if (r < op.accumulators) s.bad = 0, s.tag = RegState::kResult;
    else if (s.busy() == Busy::fragment) s.set_busy(Busy::none);
  }
  if (!op.undefined.empty()) settle_undefined(w, op);
  for (const auto& move : op.moves) {
    RegState& s = w.state[move.to.index];
    s.bad = (s.bad & ~move.lanes) | (w.state[move.from.index].bad & move.lanes);
    s.tag = RegState::kResult;
    if (s.bad) w.set_origin(move.to, w.origin(move.from));
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
      complain("warpgroup-divergence",
               "the warps of a warpgroup execute different wgmma: " + it->inst->ptx->text() +
                   " with descriptor " + hex(it->descriptor_b) + " elsewhere, " +
                   hex(descriptor_b) + " here");
    it->warps |= bit;
    if (it->warps == 15) issues.erase(it);
    return;
  }
  issues.push_back({seq, descriptor_b, &in, bit});
}

u64 uniform_descriptor(Warp& w, const Reg& r) {
  const u64* v = w.reg<u64>(r);
  for (int i = 1; i < 32; ++i)
    if (v[i] != v[0]) complain("warpgroup-divergence", "the descriptor differs between lanes", i);
  return v[0];
}

// Whether one of them is undefined.
bool check_registers(Warp& w, const PendingWgmma& op) {
  const auto& list = op.inst->list;
  u32 undefined = 0;
  for (size_t r = 0; r < list.size(); ++r) {
    const RegState& s = w.state[list[r].index];
    bool accumulator = r < op.accumulators;
    if (accumulator && s.in_flight()) continue;
    if (accumulator && s.busy() == Busy::fragment) w.busy_write(list[r]);
    if (s.bad && (op.scale_d || !accumulator)) undefined |= w.bad_source(list[r], kAllLanes, true);
    if (s.fence() == w.fence_count)
      complain("wgmma-fence-missing", "register " + w.register_name(list[r]) +
                                          " was written or read after the last wgmma.fence");
  }
  for (const auto& earlier : w.wgmmas) undefined |= !earlier->undefined.empty();
  return undefined;
}

// Finds the chunks of shared memory that the warp's operands are in, and begins to read them. The
// address of one that is not defined, or 0.
u32 begin_reads(Warp& w, PendingWgmma& op, const Wgmma& m) {
  alignas(32) uint8_t scratch[256 * 32];
  std::vector<u32> chunks;
  if (!m.a_in_registers) {
    gather(w, op.descriptor_a, 64, m.a, m.a_transposed, scratch, &chunks);
    auto first = chunks.begin() + w.index % 4 * 32;
    op.chunks.assign(first, first + 32);
  }
  gather(w, op.descriptor_b, m.n, m.b, m.b_transposed, scratch, &chunks);
  op.chunks.insert(op.chunks.end(), chunks.begin(), chunks.end());
  SharedMemory& shared = *w.cta->shared;
  u32 undefined = 0;
  for (u32 c : op.chunks) {
    if (!shared.check_async_read(c, 16, w.actor, w.m->settings.strict)) undefined = c;
    shared.begin_pending_read(c, 16);
  }
  return undefined;
}

// Lanes of an accumulator that an earlier operation in flight will leave undefined.
u32 pending_undefined(Warp& w, PendingWgmma& op, const Reg& accumulator) {
  for (size_t i = w.wgmmas.size(); i-- > 0;) {
    const PendingWgmma& earlier = *w.wgmmas[i];
    for (size_t r = 0; r < earlier.undefined.size(); ++r)
      if (earlier.inst->list[r].index == accumulator.index) {
        if (!op.undefined_from) op.undefined_from = earlier.undefined_from;
        return earlier.undefined[r];
      }
    if (earlier.accumulates_into(accumulator)) return 0;
  }
  return 0;
}

// Rows of an operand in shared memory that hold something undefined.
std::bitset<256> undefined_rows(Warp& w, const PendingWgmma& op, u64 desc, int rows, MmaType type,
                                bool transposed) {
  SharedMemory& s = *w.cta->shared;
  std::vector<uint8_t> image(s.size());
  for (u32 c : op.chunks)
    for (u32 a = c; a < c + 16; ++a) image[a] = !s.defined(a);
  alignas(32) uint8_t packed[256 * 32];
  gather_operand(image.data(), s.size(), desc, rows, type, transposed, packed);
  std::bitset<256> found;
  for (int i = 0; i < rows * 32; ++i)
    if (packed[i]) found.set(static_cast<size_t>(i / 32));
  return found;
}

// Accumulators become undefined in undefined rows of A and columns of B, and stay so.
void find_undefined(Warp& w, PendingWgmma& op, const Wgmma& m, u32 address) {
  const auto& list = op.inst->list;
  auto carry = [&](const Reg& r, u32 lanes) {
    if (lanes && !op.undefined_from) op.undefined_from = w.origin(r);
    return lanes;
  };
  std::bitset<256> rows, columns;
  if (address) {
    op.undefined_from = w.read_undefined(*w.cta->shared, address, 16, -1);
    columns = undefined_rows(w, op, op.descriptor_b, m.n, m.b, m.b_transposed);
    if (!m.a_in_registers)
      rows =
          undefined_rows(w, op, op.descriptor_a, 64, m.a, m.a_transposed) >> (w.index % 4 * kRows);
  }
  for (size_t r = op.accumulators; r < list.size(); ++r)
    for (u32 l = carry(list[r], w.state[list[r].index].bad); l; l &= l - 1)
      rows.set(static_cast<u32>(std::countr_zero(l)) / 4 + 8 * ((r - op.accumulators) % 2));
  op.undefined.assign(op.accumulators, 0);
  for (size_t r = 0; r < op.accumulators; ++r) {
    const RegState& s = w.state[list[r].index];
    u32& undefined = op.undefined[r];
    if (op.scale_d && !s.in_flight()) undefined = carry(list[r], s.bad);
    if (op.scale_d && s.in_flight()) undefined = pending_undefined(w, op, list[r]);
    u32 elements = m.accumulator == MmaAcc::f16 ? 2 : 1;
    for (u32 lane = 0; lane < 32; ++lane)
      for (u32 e = 0; e < elements; ++e) {
        u32 at = place(m.n, lane, static_cast<u32>(r) * elements + e);
        if (rows[at / m.n] || columns[at % m.n]) undefined |= 1u << lane;
      }
  }
}

void issue(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, in.ptx->text().c_str())) return;
  if (w.live != kAllLanes) fault("missing-lane", "wgmma needs all 32 lanes of the warp");
  if (!w.wgmma_fenced) complain("wgmma-fence-missing", "wgmma.mma_async before any wgmma.fence");
  const auto m = in.modifiers.as<Wgmma>();
  auto op = std::make_unique<PendingWgmma>();
  op->inst = &in;
  op->seq = ++w.wgmma_seq;
  op->accumulators = in.accumulators;
  op->compute = compute;
  for (int i = 0; i < in.sources; ++i) w.use(in.s[i], kAllLanes);
  op->descriptor_b = uniform_descriptor(w, in.s[0]);
  if (!m.a_in_registers) op->descriptor_a = uniform_descriptor(w, in.s[in.sources - 1]);
  if (m.has_scale_d) {
    u32 p = *w.reg<u32>(in.s[1]);
    if (p && p != kAllLanes) complain("warpgroup-divergence", "scale-d differs between lanes");
    op->scale_d = p != 0;
  }
  agree(w, in, op->seq, op->descriptor_b);
  bool undefined = check_registers(w, *op);
  u32 address = begin_reads(w, *op, m);
  if (undefined || address) find_undefined(w, *op, m, address);
  u32 k = 32 / static_cast<u32>(mma_bytes(m.a));
  w.counters().flop += 2ull * kRows * m.n * k;
  if (w.m->settings.mode == Mode::early) compute(w, *op);
  mark_in_flight(w, *op);
  w.wgmmas.push_back(std::move(op));
  ++w.m->progress;
}

void fence(Warp& w, const Inst&) {
  if (!w.gather(~w.dead, "wgmma.fence")) return;
  w.wgmma_fenced = true;
  if (++w.fence_count >= RegState::kMaxFence)
    fault("not-implemented", "more than 2^29 wgmma.fence");
}
void commit(Warp& w, const Inst&) {
  if (!w.gather(~w.dead, "wgmma.commit_group")) return;
  for (auto& op : w.wgmmas)
    if (op->group == ~0u) op->group = w.wgmma_group;
  ++w.wgmma_group;
}
// An operation is the warpgroup's: when it is complete for one warp, it has read its operands for
// all four. (One thread of a warpgroup may therefore release a stage after its own wait.)
void read_for_warpgroup(Warp& w, u64 last) {
  Cta& cta = *w.cta;
  u32 group = w.index / 4, engine = cta.copy_engine + 1 + group;
  u32& clock = cta.tensor_clock[group];
  bool first = true;
  for (u32 i = group * 4; i < group * 4 + 4; ++i)
    for (auto& op : cta.warps[i]->wgmmas) {
      if (op->seq > last) break;
      if (op->released) continue;
      if (first) ++clock, first = false;
      if (!op->computed) compute(*cta.warps[i], *op);
      for (u32 c : op->chunks) {
        cta.shared->end_pending_read(c, 16);
        cta.shared->note_engine_read(c, make_epoch(engine, clock), w.actor.seen);
      }
      op->released = true;
    }
  w.actor.seen[engine] = clock;
}

void wait(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, "wgmma.wait_group")) return;
  u64 last = 0;
  for (const auto& op : w.wgmmas)
    if (op->group != ~0u && op->group + static_cast<u64>(in.imm) < w.wgmma_group) last = op->seq;
  if (last) {
    for (u32 i = w.index / 4 * 4; i < w.index / 4 * 4 + 4; ++i) {
      Warp& other = *w.cta->warps[i];
      if (other.wgmma_seq >= last) continue;
      if (other.exited) other.check_warpgroup_exit();
      return w.park(Wait::warpgroup);
    }
    read_for_warpgroup(w, last);
    while (!w.wgmmas.empty() && w.wgmmas.front()->seq <= last) {
      complete(w, *w.wgmmas.front());
      w.wgmmas.pop_front();
    }
    for (const auto& op : w.wgmmas) mark_in_flight(w, *op);
    ++w.m->progress;
  }
  ++w.counters().waits;
}

void take_shape(Decoder& d, int* n, int* k) {
  std::string shape;
  for (const auto& m : d.in->mods)
    if (m.rfind("m64n", 0) == 0) shape = m;
  if (std::sscanf(shape.c_str(), "m64n%dk%d", n, k) != 2 || !d.take(shape.c_str()))
    d.unsupported("shape");
}

// The scales of A and B, 1 or -1 each; whether their product is negative.
bool negative_scale(Decoder& d, size_t a, size_t b) {
  auto negative = [&](size_t i) {
    auto v = static_cast<int64_t>(d.literal(i));
    if (v != 1 && v != -1) throw PtxError(d.in->line, d.in->text() + ": a scale is 1 or -1");
    return v < 0;
  };
  return negative(a) != negative(b);
}

// Registers of D, then those of A if it is in registers.
void add_registers(Decoder& d, Wgmma& m) {
  d.add_list(d.operand(0), 32, ListUse::read);
  if (d.out->list.size() != m.acc_registers())
    throw PtxError(d.in->line, d.in->text() + ": " + std::to_string(d.out->list.size()) +
                                   " accumulator registers");
  d.out->accumulators = static_cast<uint16_t>(m.acc_registers());
  for (const auto& p : d.operand(0).parts) d.target(p, 32);
  m.a_in_registers = d.operand(1).kind == PtxOperand::Kind::group;
  if (!m.a_in_registers) return;
  if (d.operand(1).parts.size() != 4)
    throw PtxError(d.in->line, d.in->text() + ": A needs four registers");
  d.add_list(d.operand(1), 32, ListUse::read);
}

bool decode_issue(Decoder& d) {
  int n = 0, k = 0;
  take_shape(d, &n, &k);
  Wgmma m{};
  m.satfinite = d.take("satfinite");
  Type acc = d.take_type(), at = d.take_type(), bt = d.take_type();
  d.finish();
  m.a = mma_operand_type(d, at), m.b = mma_operand_type(d, bt);
  if (n < 8 || n > 256 || n % 8 || k * mma_bytes(m.a) != 32 || mma_bytes(m.a) != mma_bytes(m.b))
    throw PtxError(d.in->line, d.in->text() + ": impossible shape");
  m.n = static_cast<uint16_t>(n);
  m.accumulator = acc.name == "f32" ? MmaAcc::f32 : acc.name == "f16" ? MmaAcc::f16 : MmaAcc::s32;
  if (mma_is_int(m.a) != (m.accumulator == MmaAcc::s32)) d.unsupported("accumulator type");
  add_registers(d, m);
  d.add_source(2, 64);
  size_t rest = 3;
  m.has_scale_d = d.operands() > rest;
  if (m.has_scale_d) d.add_source(rest++, 1);
  if (!mma_is_int(m.a) && d.operands() > rest + 1) {
    m.negative = negative_scale(d, rest, rest + 1);
    rest += 2;
  }
  if (d.operands() > rest && !m.a_in_registers) m.a_transposed = d.literal(rest++) != 0;
  if (d.operands() > rest) m.b_transposed = d.literal(rest++) != 0;
  if (!m.a_in_registers) d.add_source(1, 64);  // the last source
  d.out->modifiers.store(m);
  d.out->checks_itself = true;
  d.out->run = issue;
  return true;
}

}  // namespace

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
