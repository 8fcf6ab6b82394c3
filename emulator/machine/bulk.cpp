// The copy engine: cp.async.bulk, tensor copies (TMA), reductions, bulk groups.
#include <bit>
#include <cstring>

#include "machine/async.h"
#include "machine/decode.h"
#include "tensor/tensor_map.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

// Runs of one copy that are contiguous on both sides.
struct Run {
  u64 global;
  u32 shared, bytes;
  bool in_bounds;
};
struct Plan {
  std::vector<Run> runs;
  u32 bytes = 0;
  u64 fill = 0;
  u32 fill_bytes = 0;  // element size of the fill pattern
};

// in.a bits
enum : u32 {
  kTensor = 1,
  kLoad = 2,
  kReduce = 4,
  kMulticast = 8,
  kFromShared = 16,
  kPrefetch = 32
};

TensorMap tensor_map(Warp& w, u64 address, int lane) {
  check_aligned(address, 64, lane);
  global_pointer(w, lane, address, sizeof(TensorMap), false);
  TensorMap map;
  std::string why = read_tensor_map(reinterpret_cast<const void*>(address), &map);
  if (!why.empty()) fault_at("tensor-map", why, lane, address);
  return map;
}

Plan tensor_plan(Warp& w, const Inst& in, const TensorMap& map, u32 shared, int lane) {
  int32_t coords[5] = {};
  if (in.list.size() != map.rank)
    fault("tensor-map",
          "the instruction has " + std::to_string(in.list.size()) + " coordinates, the map " +
              std::to_string(map.rank) + " dimensions",
          lane);
  for (size_t k = 0; k < in.list.size(); ++k) coords[k] = w.reg<int32_t>(in.list[k])[lane];
  Plan p;
  p.fill = oob_fill_bits(map);
  p.fill_bytes = map.element_bytes();
  for_each_run(map, coords, shared, [&](const BoxRun& r) {
    p.bytes += r.bytes;
    if (!p.runs.empty()) {
      Run& last = p.runs.back();
      if (last.in_bounds == r.in_bounds && last.shared + last.bytes == r.shared &&
          (!r.in_bounds || last.global + last.bytes == r.global)) {
        last.bytes += r.bytes;
        return;
      }
    }
    p.runs.push_back({r.global, r.shared, r.bytes, r.in_bounds});
  });
  u64 low, high;
  if (box_global_range(map, coords, &low, &high)) global_pointer(w, lane, low, high - low, false);
  return p;
}

// The copy engine does not look into store buffers, not even into its own CTA's; what the kernel
// wrote it sees behind a proxy fence, of the writer or of the thread that copies.
void check_stored(Warp& w, u64 address, u64 bytes, int lane) {
  const Launch& l = *w.cta->cluster->launch;
  for (u64 s = address & ~u64{31}; s < address + bytes; s += 32) {
    u64 lo = std::max(address, s) - s, hi = std::min(address + bytes, s + 32) - s;
    auto mask = static_cast<u32>(((u64{1} << hi) - 1) & ~((u64{1} << lo) - 1));
    const Sector& sector = w.m->sectors.at(s);
    if (sector.unpublished & mask)
      fault_at("stale-global-read",
               "a bulk copy reads global memory that CTA " + std::to_string(sector.owner - 1) +
                   " (linear index) stored and has not published with a fence",
               lane, s);
    if ((sector.written & mask) && sector.launch == static_cast<uint16_t>(l.id) &&
        !sector.bulk_written && l.proxied[sector.owner - 1] < sector.write_time &&
        w.proxied < sector.write_time)
      fault_at("proxy-fence-missing",
               "a bulk copy reads global memory that CTA " + std::to_string(sector.owner - 1) +
                   " (linear index) stored, without a fence.proxy.async between",
               lane, s);
  }
}

void load_runs(const Plan& p, SharedMemory& to, u32 epoch) {
  for (const Run& r : p.runs) {
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

// Global or shared memory to the shared memory of one or several CTAs.
void load(Warp& w, const Inst& in, int lane) {
  Cluster& cluster = *w.cta->cluster;
  SharedPlace to = shared_place(w, address_of(w, in.at[0], lane), lane);
  u64 source = address_of(w, in.at[1], lane);
  SharedPlace bar = mbarrier_place(w, address_of(w, in.at[2], lane), true, lane);
  Plan plan;
  if (in.a & kTensor) {
    check_aligned(to.offset, 128, lane);
    if (generic_space(&source) != Space::global)
      fault_at("tensor-map", "a tensor map is in global, constant or parameter memory", lane,
               source);
    plan = tensor_plan(w, in, tensor_map(w, source, lane), to.offset, lane);
  } else {
    u32 bytes = w.reg<u32>(in.s[0])[lane];
    if (!bytes || bytes % 16)
      fault("misaligned",
            "a bulk copy of " + std::to_string(bytes) + " bytes: a multiple of 16 is needed", lane);
    check_aligned(to.offset, 16, lane);
    check_aligned(source, 16, lane);
    plan.bytes = bytes;
    if (!(in.a & kFromShared)) {
      if (generic_space(&source) != Space::global)
        fault_at("global-out-of-bounds", "the source is not global memory", lane, source);
      global_pointer(w, lane, source, bytes, false);
    }
    plan.runs.push_back({source, to.offset, bytes, true});
  }
  Cta* from = nullptr;
  if (in.a & kFromShared) {
    from = w.cta;
    u32 offset = static_cast<u32>(source & 0xffffff);
    from->shared->check_async_read(offset, plan.bytes, w.actor, w.m->settings.strict);
    from->shared->begin_pending_read(offset, plan.bytes);
    plan.runs[0].global = reinterpret_cast<u64>(from->shared->data() + offset);
  } else {
    for (const Run& r : plan.runs)
      if (r.in_bounds) {
        note_global(w, r.global, r.bytes, Access::read, lane);
        check_stored(w, r.global, r.bytes, lane);
        w.counters().bulk_bytes += r.bytes;
      }
  }
  std::vector<Cta*> targets;
  if (in.a & kMulticast) {
    u32 mask = w.reg<uint16_t>(in.s[in.sources - 1])[lane];
    if (!mask || mask >> cluster.ctas.size())
      fault("bad-operand",
            "multicast mask " + hex(mask) + " for a cluster of " +
                std::to_string(cluster.ctas.size()),
            lane);
    for (u32 r = 0; mask >> r; ++r)
      if (mask >> r & 1) targets.push_back(cluster.ctas[r].get());
  } else {
    targets.push_back(to.cta);
  }
  struct Target {
    Cta* cta;
    u32 epoch;
  };
  std::vector<Target> list;
  for (Cta* cta : targets) {
    if (!cta->running)
      fault("cluster-exited", "a bulk copy into the shared memory of a CTA that has ended", lane);
    for (const Run& r : plan.runs) {
      check_no_mbarrier(*cta, r.shared, r.bytes, lane);
      cta->shared->check_async_write(r.shared, r.bytes, w.actor);
      cta->shared->begin_pending_write(r.shared, r.bytes);
    }
    list.push_back({cta, cta->agent << 22 | ++cta->agent_clock});
    if (in.a & kMulticast) find_copy_mbarrier(w, {cta, bar.offset}, lane);
  }
  if (!(in.a & kMulticast)) find_copy_mbarrier(w, bar, lane);
  BulkOp op;
  op.warp = &w;
  op.inst = &in;
  op.lane = lane;
  bool multicast = in.a & kMulticast;
  op.land = [plan = std::move(plan), list = std::move(list), seen = w.actor.seen,
             proxied = w.actor.proxied, bar, multicast, from] {
    if (from)
      from->shared->end_pending_read(
          static_cast<u32>(plan.runs[0].global - reinterpret_cast<u64>(from->shared->data())),
          plan.bytes);
    for (const Target& t : list) {
      load_runs(plan, *t.cta->shared, t.epoch);
      mbarrier_complete(multicast ? *t.cta : *bar.cta, bar.offset, plan.bytes, seen, proxied,
                        t.epoch);
    }
  };
  w.m->submit(std::move(op));
}

u64 combine(const Inst& in, TensorType type, u64 a, u64 b) {
  return reduce_element(type, static_cast<BoxReduce>(in.b), a, b);
}

// Shared memory to global memory, plainly or as a reduction.
void store(Warp& w, const Inst& in, int lane) {
  u64 target = address_of(w, in.at[0], lane);
  SharedPlace from = shared_place(w, address_of(w, in.at[1], lane), lane);
  if (from.cta != w.cta)
    fault("shared-out-of-bounds", "a bulk store reads its own CTA's shared memory only", lane);
  Plan plan;
  auto type = static_cast<TensorType>(in.target);
  if (in.a & kTensor) {
    check_aligned(from.offset, 128, lane);
    TensorMap map = tensor_map(w, target, lane);
    plan = tensor_plan(w, in, map, from.offset, lane);
    type = map.type;
  } else {
    u32 bytes = w.reg<u32>(in.s[0])[lane];
    if (!bytes || bytes % 16)
      fault("misaligned",
            "a bulk copy of " + std::to_string(bytes) + " bytes: a multiple of 16 is needed", lane);
    check_aligned(from.offset, 16, lane);
    check_aligned(target, 16, lane);
    global_pointer(w, lane, target, bytes, true);
    plan.bytes = bytes;
    plan.runs.push_back({target, from.offset, bytes, true});
  }
  SharedMemory* shared = w.cta->shared.get();
  for (const Run& r : plan.runs) {
    shared->check_bounds(r.shared, r.bytes, lane);
    if (!r.in_bounds) continue;
    shared->check_async_read(r.shared, r.bytes, w.actor, w.m->settings.strict);
    shared->begin_pending_read(r.shared, r.bytes);
    w.counters().bulk_bytes += r.bytes;
  }
  auto data = std::make_shared<std::vector<uint8_t>>();
  auto runs = std::make_shared<std::vector<Run>>(std::move(plan.runs));
  BulkOp op;
  op.warp = &w;
  op.inst = &in;
  op.lane = lane;
  op.group = w.bulk_group[lane];
  op.read = [shared, data, runs] {
    for (const Run& r : *runs)
      if (r.in_bounds)
        data->insert(data->end(), shared->data() + r.shared, shared->data() + r.shared + r.bytes);
  };
  op.release = [shared, runs, &w] {
    for (const Run& r : *runs)
      if (r.in_bounds) {
        shared->end_pending_read(r.shared, r.bytes);
        shared->note_read(r.shared, r.bytes, w.actor);
      }
  };
  op.land = [data, runs, &w, &in, type, lane] {
    size_t at = 0;
    for (const Run& r : *runs) {
      if (!r.in_bounds) continue;
      auto* to = reinterpret_cast<uint8_t*>(r.global);
      note_global(w, r.global, r.bytes, Access::bulk_write, lane);
      if (!(in.a & kReduce)) {
        std::memcpy(to, data->data() + at, r.bytes);
      } else {
        u32 size = tensor_type_bytes(type);
        for (u32 i = 0; i < r.bytes; i += size) {
          u64 a = 0, b = 0;
          std::memcpy(&a, to + i, size);
          std::memcpy(&b, data->data() + at + i, size);
          a = combine(in, type, a, b);
          std::memcpy(to + i, &a, size);
        }
      }
      at += r.bytes;
    }
  };
  w.m->submit(std::move(op));
}

void bulk(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    if (in.a & kPrefetch) continue;
    for (const Src& s : in.list) w.use(s, 1u << lane);
    if (in.a & kLoad) load(w, in, lane);
    else store(w, in, lane);
  }
}
void commit(Warp& w, const Inst&) {
  for (u32 l = w.active; l; l &= l - 1) ++w.bulk_group[std::countr_zero(l)];
}
void wait(Warp& w, const Inst& in) {  // in.a: .read
  ++w.counters().waits;
  for (u32 l = w.active; l; l &= l - 1)
    w.m->complete_bulk_groups(w, std::countr_zero(l), static_cast<u32>(in.imm), in.a != 0);
}

// st.async: a store to another CTA that reports to an mbarrier there. in.a: bytes, in.b: elements
void store_async(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    u32 bytes = in.a * in.b;
    SharedPlace to = shared_place(w, address_of(w, in.at[0], lane), lane);
    SharedPlace bar = mbarrier_place(w, address_of(w, in.at[1], lane), true, lane);
    check_aligned(to.offset, bytes, lane);
    std::vector<uint8_t> data(bytes);
    for (u32 k = 0; k < in.b; ++k) {
      u64 v = get_lane(w, in.list[k], in.a, lane);
      std::memcpy(data.data() + k * in.a, &v, in.a);
    }
    check_no_mbarrier(*to.cta, to.offset, bytes, lane);
    to.cta->shared->check_async_write(to.offset, bytes, w.actor);
    to.cta->shared->begin_pending_write(to.offset, bytes);
    find_mbarrier(w, bar, lane);
    u32 epoch = to.cta->agent << 22 | ++to.cta->agent_clock;
    BulkOp op;
    op.warp = &w, op.inst = &in, op.lane = lane;
    op.land = [to, bar, data = std::move(data), epoch, seen = w.actor.seen,
               proxied = w.actor.proxied] {
      std::memcpy(to.cta->shared->data() + to.offset, data.data(), data.size());
      to.cta->shared->end_pending_write(to.offset, static_cast<u32>(data.size()));
      to.cta->shared->note_async_write(to.offset, static_cast<u32>(data.size()), epoch);
      mbarrier_complete(*bar.cta, bar.offset, static_cast<u32>(data.size()), seen, proxied, epoch);
    };
    w.m->submit(std::move(op));
  }
}

bool decode_store_async(Decoder& d) {
  Inst& out = *d.out;
  d.take("async"), d.take("weak");
  d.take("shared::cluster"), d.take("mbarrier::complete_tx::bytes");
  int vector = d.take_one("v2 v4");
  Type t = d.take_type();
  d.finish();
  out.a = t.bits / 8;
  out.b = vector < 0 ? 1 : 2u << vector;
  out.at.push_back(d.address(d.operand(0), Space::shared));
  d.add_list(d.operand(1), t.bits, 1, t.kind == Kind::real);
  out.at.push_back(d.address(d.operand(2), Space::shared));
  if (out.list.size() != out.b) throw PtxError(d.in->line, "st.async: wrong number of values");
  out.run = store_async;
  return true;
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

}  // namespace

bool decode_bulk(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "st" && d.in->has("async")) return decode_store_async(d);
  if (op != "cp" || !d.in->has("bulk")) return false;
  d.take("async"), d.take("bulk");
  if (d.take("commit_group")) {
    d.finish();
    out.run = commit;
    return true;
  }
  if (d.take("wait_group")) {
    out.a = d.take("read");
    d.finish();
    out.imm = static_cast<int64_t>(d.literal(0));
    out.run = wait;
    return true;
  }
  bool reduce = d.take("reduce");
  out.a = (d.take("tensor") ? kTensor : 0u) | (reduce ? kReduce : 0u);
  int dims = d.take_one("1d 2d 3d 4d 5d") + 1;
  d.take("tile");
  if (d.take("prefetch")) out.a |= kPrefetch;
  bool policy = d.take("L2::cache_hint"), multicast = d.take("multicast::cluster");
  if (multicast) out.a |= kMulticast;
  out.run = bulk;
  size_t at = 0;
  auto tensor_operand = [&](size_t i) {
    const PtxOperand& o = d.operand(i);
    out.at.push_back(d.address(o, Space::none));
    if (!(out.a & kTensor)) return;
    if (o.parts.size() < 2 || o.parts[1].kind != PtxOperand::Kind::group ||
        o.parts[1].parts.size() != static_cast<size_t>(dims))
      throw PtxError(d.in->line,
                     d.in->text() + ": expected " + std::to_string(dims) + " coordinates");
    for (const auto& c : o.parts[1].parts) out.list.push_back(d.source(c, 32));
  };
  if (out.a & kPrefetch) {
    d.take("L2"), d.take("global");
    d.finish();
    tensor_operand(0);
    return true;
  }
  if (d.take("mbarrier::complete_tx::bytes")) {
    if (reduce) d.unsupported("reduction into shared memory");
    out.a |= kLoad;
    bool global = d.take("global");
    int spaces = 0;
    while (d.take_one("shared::cluster shared::cta") >= 0) ++spaces;
    if (!global) out.a |= kFromShared;
    if (spaces != (global ? 1 : 2)) d.unsupported("state spaces");
    d.finish();
    out.at.push_back(d.address(d.operand(at++), Space::shared));
    tensor_operand(at++);
    if (!(out.a & kTensor)) d.add_source(at++, 32);
    out.at.push_back(d.address(d.operand(at++), Space::shared));
    if (multicast) d.add_source(at++, 16);
  } else {
    d.take("bulk_group");
    d.take("global");
    if (d.take_one("shared::cta shared::cluster") < 0) d.unsupported("state spaces");
    if (reduce) {
      int how = d.take_one("add min max inc dec and or xor");
      if (how < 0) d.unsupported("reduction");
      out.b = static_cast<u32>(how);
      d.take("noftz");
      if (!(out.a & kTensor)) out.target = static_cast<u32>(element_type(d, d.take_type()));
    }
    d.finish();
    tensor_operand(at++);
    out.at.push_back(d.address(d.operand(at++), Space::shared));
    if (!(out.a & kTensor)) d.add_source(at++, 32);
  }
  (void)policy;
  return true;
}

}  // namespace l4k::emu
