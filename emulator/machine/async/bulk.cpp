// The copy engine: cp.async.bulk, tensor copies (TMA), reductions, bulk groups.
#include <bit>
#include <cstring>

#include "machine/async/copy_plan.h"
#include "machine/async/families.h"
#include "machine/async/mbarrier.h"
#include "machine/isa/lanes.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

struct BulkCopy {
  enum Direction : uint8_t { prefetch, load, store } direction;
  bool tensor, reduces;
  bool multicast, from_shared;  // of loads
  BoxReduce reduction;
  TensorType element;  // of a reduction without a tensor map
};

// The copy engine does not look into store buffers, not even into its own CTA's; what the kernel
// wrote it sees after a proxy fence, of the writer or of the thread that copies.
void check_stored(Warp& w, u64 address, u64 bytes, int lane) {
  const Launch& l = *w.cta->cluster->launch;
  for (u64 s = address & ~u64{31}; s < address + bytes; s += 32) {
    u64 lo = std::max(address, s) - s, hi = std::min(address + bytes, s + 32) - s;
    auto mask = static_cast<u32>(((u64{1} << hi) - 1) & ~((u64{1} << lo) - 1));
    const Sector& sector = w.m->sectors.at(s);
    if (sector.unpublished & mask)
      complain_at("stale-global-read",
                  "a bulk copy reads global memory that CTA " + std::to_string(sector.owner - 1) +
                      " (linear index) stored and has not published with a fence",
                  lane, s);
    if ((sector.written & mask) && sector.launch == static_cast<uint16_t>(l.id) &&
        !sector.bulk_written && l.proxied[sector.owner - 1] < sector.write_time &&
        w.proxied < sector.write_time)
      complain_at("proxy-fence-missing",
                  "a bulk copy reads global memory that CTA " + std::to_string(sector.owner - 1) +
                      " (linear index) stored, without a fence.proxy.async between",
                  lane, s);
  }
}

void load_runs(const CopyPlan& p, SharedMemory& to, u32 epoch) {
  for (const CopyRun& r : p.runs) {
    uint8_t* d = to.data() + r.shared;
    if (r.in_bounds) {
      std::memcpy(d, reinterpret_cast<const void*>(r.global), r.bytes);
    } else if (!p.fill) {
      std::memset(d, 0, r.bytes);
    } else {
      for (u32 i = 0; i < r.bytes; ++i)
        d[i] = static_cast<uint8_t>(p.fill >> (8 * ((r.shared + i) % p.fill_bytes)));
    }
    to.end_pending_write(r.shared, r.bytes);
    to.note_async_write(r.shared, r.bytes, epoch);
  }
}

// The whole source of a load in global memory.
void check_global_source(Warp& w, const CopyPlan& plan, int lane) {
  for (const CopyRun& r : plan.runs) {
    if (!r.in_bounds) continue;
    note_global(w, r.global, r.bytes, Access::copy_read, lane);
    check_stored(w, r.global, r.bytes, lane);
    w.counters().bulk_bytes += r.bytes;
  }
}

// What a copy reads of the CTA's own shared memory.
void begin_read(Warp& w, u32 offset, u32 bytes, int lane) {
  SharedMemory& from = *w.cta->shared;
  if (!from.check_async_read(offset, bytes, w.actor, w.m->settings.strict))
    w.use_undefined(w.read_undefined(from, offset, bytes, lane), "a bulk copy reads", lane);
  from.begin_pending_read(offset, bytes);
}

// A source in the CTA's own shared memory: the plan's run becomes a host pointer.
void begin_shared_source(Warp& w, CopyPlan& plan, int lane) {
  SharedMemory& from = *w.cta->shared;
  u32 offset = static_cast<u32>(plan.runs[0].global & 0xffffff);
  begin_read(w, offset, plan.bytes, lane);
  plan.runs[0].global = reinterpret_cast<u64>(from.data() + offset);
}
void end_shared_source(Cta& cta, const CopyPlan& plan) {
  u64 offset = plan.runs[0].global - reinterpret_cast<u64>(cta.shared->data());
  cta.shared->end_pending_read(static_cast<u32>(offset), plan.bytes);
}

CopyPlan load_plan(Warp& w, const Inst& in, const BulkCopy& m, const SharedPlace& to, int lane) {
  u64 source = address_of(w, in.at[1], lane);
  if (m.tensor) {
    check_aligned(to.offset, 128, lane);
    if (generic_space(&source) != Space::global)
      fault_at("tensor-map", "a tensor map is in global, constant or parameter memory", lane,
               source);
    return tensor_plan(w, in, tensor_map(w, source, lane), to.offset, lane);
  }
  CopyPlan plan = linear_plan(source, to.offset, w.reg<u32>(in.s[0])[lane], lane);
  if (m.from_shared) return plan;
  if (generic_space(&source) != Space::global)
    fault_at("global-out-of-bounds", "the source is not global memory", lane, source);
  global_pointer(w, lane, source, plan.bytes, false);
  return plan;
}

std::vector<Cta*> multicast_ctas(Warp& w, u32 mask, int lane) {
  Cluster& cluster = *w.cta->cluster;
  if (!mask || mask >> cluster.ctas.size())
    fault(
        "bad-operand",
        "multicast mask " + hex(mask) + " for a cluster of " + std::to_string(cluster.ctas.size()),
        lane);
  std::vector<Cta*> ctas;
  for (u32 r = 0; mask >> r; ++r)
    if (mask >> r & 1) ctas.push_back(cluster.ctas[r].get());
  return ctas;
}

// A CTA that a load writes to, and the mbarrier that counts its bytes.
struct LoadTarget {
  Cta* cta;
  u32 epoch;
  SharedPlace barrier;
};
LoadTarget begin_target(Warp& w, const CopyPlan& plan, Cta& cta, const SharedPlace& barrier,
                        int lane) {
  if (!cta.running)
    fault("cluster-exited", "a bulk copy into the shared memory of a CTA that has ended", lane);
  for (const CopyRun& r : plan.runs) {
    check_no_mbarrier(cta, r.shared, r.bytes, lane);
    cta.shared->check_async_write(r.shared, r.bytes, w.actor);
  }
  // Afterwards: where a tensor ends, two runs of one copy can meet inside one granule of the shadow.
  for (const CopyRun& r : plan.runs) cta.shared->begin_pending_write(r.shared, r.bytes);
  LoadTarget target{&cta, cta.next_copy_epoch(*w.cta), barrier};
  find_copy_mbarrier(w, barrier, lane);
  return target;
}

// Global or shared memory to the shared memory of one or several CTAs.
void load(Warp& w, const Inst& in, const BulkCopy& m, int lane) {
  SharedPlace to = shared_place(w, address_of(w, in.at[0], lane), lane);
  SharedPlace bar = mbarrier_place(w, address_of(w, in.at[2], lane), true, lane);
  CopyPlan plan = load_plan(w, in, m, to, lane);
  if (m.from_shared) begin_shared_source(w, plan, lane);
  else check_global_source(w, plan, lane);
  std::vector<LoadTarget> targets;
  if (m.multicast) {
    u32 mask = w.reg<uint16_t>(in.s[in.sources - 1])[lane];
    for (Cta* cta : multicast_ctas(w, mask, lane))
      targets.push_back(begin_target(w, plan, *cta, {cta, bar.offset}, lane));
  } else {
    targets.push_back(begin_target(w, plan, *to.cta, bar, lane));
  }
  BulkOp op;
  op.warp = &w;
  op.inst = &in;
  op.lane = lane;
  op.land = [plan = std::move(plan), targets = std::move(targets), seen = w.actor.seen,
             proxied = w.actor.proxied, from = m.from_shared ? w.cta : nullptr] {
    if (from) end_shared_source(*from, plan);
    for (const LoadTarget& t : targets) {
      load_runs(plan, *t.cta->shared, t.epoch);
      mbarrier_complete(*t.barrier.cta, t.barrier.offset, plan.bytes, seen, proxied, t.epoch);
    }
  };
  w.m->submit(std::move(op));
}

// Adds to (or otherwise combines with) `bytes` of global memory.
void reduce_into(uint8_t* to, const uint8_t* data, u32 bytes, TensorType type, BoxReduce how) {
  u32 size = tensor_type_bytes(type);
  for (u32 i = 0; i < bytes; i += size) {
    u64 a = 0, b = 0;
    std::memcpy(&a, to + i, size);
    std::memcpy(&b, data + i, size);
    a = reduce_element(type, how, a, b);
    std::memcpy(to + i, &a, size);
  }
}

CopyPlan store_plan(Warp& w, const Inst& in, const SharedPlace& from, int lane, BulkCopy* m) {
  u64 target = address_of(w, in.at[0], lane);
  if (m->tensor) {
    check_aligned(from.offset, 128, lane);
    TensorMap map = tensor_map(w, target, lane);
    m->element = map.type;
    return tensor_plan(w, in, map, from.offset, lane);
  }
  CopyPlan plan = linear_plan(target, from.offset, w.reg<u32>(in.s[0])[lane], lane);
  global_pointer(w, lane, target, plan.bytes, true);
  return plan;
}

// Shared memory to global memory, plainly or as a reduction.
void store(Warp& w, const Inst& in, BulkCopy m, int lane) {
  SharedPlace from = shared_place(w, address_of(w, in.at[1], lane), lane);
  if (from.cta != w.cta)
    fault("shared-out-of-bounds", "a bulk store reads its own CTA's shared memory only", lane);
  CopyPlan plan = store_plan(w, in, from, lane, &m);
  SharedMemory* shared = w.cta->shared.get();
  auto runs = std::make_shared<std::vector<CopyRun>>();
  for (const CopyRun& r : plan.runs) {
    shared->check_bounds(r.shared, r.bytes, lane);
    if (!r.in_bounds) continue;
    begin_read(w, r.shared, r.bytes, lane);
    w.counters().bulk_bytes += r.bytes;
    runs->push_back(r);
  }
  auto data = std::make_shared<std::vector<uint8_t>>();
  BulkOp op;
  op.warp = &w;
  op.inst = &in;
  op.lane = lane;
  op.group = w.bulk_group[lane];
  op.read = [shared, data, runs] {
    for (const CopyRun& r : *runs)
      data->insert(data->end(), shared->data() + r.shared, shared->data() + r.shared + r.bytes);
  };
  op.release = [shared, runs, &w] {
    for (const CopyRun& r : *runs) {
      shared->end_pending_read(r.shared, r.bytes);
      shared->note_read(r.shared, r.bytes, w.actor);
    }
  };
  op.land = [data, runs, &w, m, lane] {
    const uint8_t* bytes = data->data();
    for (const CopyRun& r : *runs) {
      auto* to = reinterpret_cast<uint8_t*>(r.global);
      note_global(w, r.global, r.bytes, Access::bulk_write, lane);
      if (m.reduces) reduce_into(to, bytes, r.bytes, m.element, m.reduction);
      else std::memcpy(to, bytes, r.bytes);
      bytes += r.bytes;
    }
  };
  w.m->submit(std::move(op));
}

void bulk(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<BulkCopy>();
  if (m.direction == BulkCopy::prefetch) return;
  for (u32 l = w.active; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    for (const Reg& s : in.list) w.use(s, 1u << lane);
    if (m.direction == BulkCopy::load) load(w, in, m, lane);
    else store(w, in, m, lane);
  }
}
void commit(Warp& w, const Inst&) {
  for (u32 l = w.active; l; l &= l - 1) ++w.bulk_group[std::countr_zero(l)];
}
struct WaitGroup {
  bool read;  // until shared memory has been read, not until memory is written
};
void wait(Warp& w, const Inst& in) {
  ++w.counters().waits;
  for (u32 l = w.active; l; l &= l - 1)
    w.m->complete_bulk_groups(w, std::countr_zero(l), static_cast<u32>(in.imm),
                              in.modifiers.as<WaitGroup>().read);
}

TensorType element_type(Decoder& d, const Type& t) {
  static constexpr struct {
    const char* name;
    TensorType type;
  } kTypes[] = {{"u32", TensorType::u32}, {"s32", TensorType::s32}, {"u64", TensorType::u64},
                {"s64", TensorType::s64}, {"f16", TensorType::f16}, {"bf16", TensorType::bf16},
                {"f32", TensorType::f32}, {"f64", TensorType::f64}, {"b32", TensorType::u32},
                {"b64", TensorType::u64}};
  for (const auto& k : kTypes)
    if (t.name == k.name) return k.type;
  d.unsupported("element type");
}

// [address], or [map, {coordinates}] of a tensor copy.
void add_global(Decoder& d, size_t i, const BulkCopy& m, int dims) {
  const PtxOperand& o = d.operand(i);
  d.add_at(i, Space::none);
  if (!m.tensor) return;
  if (o.parts.size() < 2 || o.parts[1].kind != PtxOperand::Kind::group ||
      o.parts[1].parts.size() != static_cast<size_t>(dims))
    throw PtxError(d.in->line,
                   d.in->text() + ": expected " + std::to_string(dims) + " coordinates");
  for (const auto& c : o.parts[1].parts) d.out->list.push_back(d.source(c, 32));
}

void decode_load(Decoder& d, BulkCopy& m, int dims) {
  if (m.reduces) d.unsupported("reduction into shared memory");
  m.direction = BulkCopy::load;
  m.from_shared = !d.take("global");
  int spaces = 0;
  while (d.take_one("shared::cluster shared::cta") >= 0) ++spaces;
  if (spaces != (m.from_shared ? 2 : 1)) d.unsupported("state spaces");
  d.finish();
  size_t at = 0;
  d.add_at(at++, Space::shared);
  add_global(d, at++, m, dims);
  if (!m.tensor) d.add_source(at++, 32);
  d.add_at(at++, Space::shared);
  if (m.multicast) d.add_source(at++, 16);
}

void decode_store(Decoder& d, BulkCopy& m, int dims) {
  m.direction = BulkCopy::store;
  d.take("bulk_group"), d.take("global");
  if (d.take_one("shared::cta shared::cluster") < 0) d.unsupported("state spaces");
  d.program->communicates |= m.reduces;
  if (m.reduces) {
    int how = d.take_one("add min max inc dec and or xor");
    if (how < 0) d.unsupported("reduction");
    m.reduction = static_cast<BoxReduce>(how);
    d.take("noftz");
    if (!m.tensor) m.element = element_type(d, d.take_type());
  }
  d.finish();
  size_t at = 0;
  add_global(d, at++, m, dims);
  d.add_at(at++, Space::shared);
  if (!m.tensor) d.add_source(at++, 32);
}

}  // namespace

bool decode_bulk(Decoder& d) {
  if (d.in->opcode != "cp" || !d.in->has("bulk")) return false;
  Inst& out = *d.out;
  d.take("async"), d.take("bulk");
  if (d.take("commit_group")) {
    d.finish();
    out.run = commit;
    return true;
  }
  if (d.take("wait_group")) {
    out.modifiers.store(WaitGroup{d.take("read")});
    d.finish();
    out.imm = static_cast<int64_t>(d.literal(0));
    out.run = wait;
    return true;
  }
  BulkCopy m{};
  m.reduces = d.take("reduce"), m.tensor = d.take("tensor");
  int dims = d.take_one("1d 2d 3d 4d 5d") + 1;
  d.take("tile");
  bool prefetch = d.take("prefetch");
  d.take("L2::cache_hint");
  m.multicast = d.take("multicast::cluster");
  if (prefetch) {
    d.take("L2"), d.take("global");
    d.finish();
    add_global(d, 0, m, dims);
  } else if (d.take("mbarrier::complete_tx::bytes")) {
    decode_load(d, m, dims);
  } else {
    decode_store(d, m, dims);
  }
  out.modifiers.store(m);
  out.run = bulk;
  return true;
}

}  // namespace l4k::emu
