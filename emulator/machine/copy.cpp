// cp.async: copies of 4, 8 or 16 bytes per thread that land when their group is waited for.
#include <bit>
#include <cstring>

#include "machine/async.h"
#include "machine/decode.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

// in.a: bytes; s[0]: source bytes or ignore-src predicate (in.b: 0 none, 1 bytes, 2 predicate)
void copy(Warp& w, const Inst& in) {
  CpAsync c;
  c.mask = w.active;
  c.bytes = in.a;
  c.group = w.copy_group;
  c.sequence = ++w.copy_seq;
  c.inst = &in;
  u64 source[32] = {}, destination[32] = {};
  u32 reading = 0;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    destination[i] = address_of(w, in.at[0], i);
    source[i] = address_of(w, in.at[1], i);
    c.source_bytes[i] = in.b == 1                                      ? w.reg<u32>(in.s[0])[i]
                        : in.b == 2 && (*w.reg<u32>(in.s[0]) >> i & 1) ? 0
                                                                       : in.a;
    if (c.source_bytes[i] > in.a)
      fault_at("bad-operand",
               "cp.async with a source size of " + std::to_string(c.source_bytes[i]) + " for " +
                   std::to_string(in.a) + " bytes",
               i, source[i]);
    SharedPlace at = shared_place(w, destination[i], i);
    if (at.cta != w.cta)
      fault_at("shared-out-of-bounds", "cp.async writes its own CTA's shared memory only", i,
               destination[i]);
    check_aligned(at.offset, in.a, i);
    c.destination[i] = at.offset;
    c.source[i] = source[i];
    check_no_mbarrier(*at.cta, at.offset, in.a, i);
    // Ordering and bounds are those of the moment of issue.
    at.cta->shared->write(at.offset, in.a, w.actor, i, Writer::cp_async);
    if (!c.source_bytes[i]) continue;
    if (generic_space(&source[i]) != Space::global)
      fault_at("global-out-of-bounds", "cp.async reads global memory only", i, source[i]);
    check_aligned(source[i], in.a, i);
    global_pointer(w, i, source[i], c.source_bytes[i], false);
    note_global(w, source[i], c.source_bytes[i], Access::read, i);
    reading |= 1u << i;
  }
  if (reading) count_global(w, source, reading, in.a);
  count_shared(w, destination, w.active, in.a);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    w.cta->shared->begin_pending_write(c.destination[i], in.a);
  }
  w.copies.push_back(c);
  if (w.m->settings.mode == Mode::early) {
    // The data is there at once; whoever looks before the wait is still wrong, but gets it.
    land_copies(w, w.copy_seq, w.active);
  }
}

void commit(Warp& w, const Inst&) { ++w.copy_group; }

// in.imm: groups that may stay pending; -1: everything, committed or not
void wait(Warp& w, const Inst& in) {
  u32 up_to = 0;
  for (const auto& c : w.copies)
    if (in.imm < 0 || c.group + static_cast<u32>(in.imm) < w.copy_group) up_to = c.sequence;
  ++w.counters().waits;
  if (up_to) land_copies(w, up_to, w.active);
}

}  // namespace

void land_copies(Warp& w, u32 up_to, u32 lanes) {
  SharedMemory& shared = *w.cta->shared;
  for (CpAsync& c : w.copies) {
    if (c.sequence > up_to) break;
    for (u32 l = c.mask & lanes; l; l &= l - 1) {
      int i = std::countr_zero(l);
      shared.end_pending_write(c.destination[i], c.bytes);
      uint8_t* to = shared.data() + c.destination[i];
      u32 n = c.source_bytes[i];
      if (n) {
        std::memcpy(to, reinterpret_cast<const void*>(c.source[i]), n);
        if (!w.cta->stores.empty()) w.cta->stores.read(c.source[i], to, n);
        if (!w.stores.empty()) w.stores.read(c.source[i], to, n);
      }
      std::memset(to + n, 0, c.bytes - n);
      shared.write(c.destination[i], c.bytes, w.actor, i, Writer::cp_async);
    }
    c.mask &= ~lanes;
    ++w.m->progress;
  }
  std::erase_if(w.copies, [](const CpAsync& c) { return !c.mask; });
  bool released = false;
  for (size_t k = 0; k < w.deferred_arrives.size();) {
    DeferredArrive a = w.deferred_arrives[k];
    bool pending = false;
    for (const CpAsync& c : w.copies) pending |= c.sequence <= a.after && (c.mask >> a.lane & 1);
    if (pending || !(lanes >> a.lane & 1)) {
      ++k;
      continue;
    }
    w.deferred_arrives.erase(w.deferred_arrives.begin() + static_cast<ptrdiff_t>(k));
    auto it = a.cta->mbarriers.find(a.address);
    if (it == a.cta->mbarriers.end())
      fault_at("mbarrier-uninitialised", "cp.async.mbarrier.arrive on a place that is no mbarrier",
               a.lane, a.address);
    join(it->second.next_seen, w.actor.seen);
    join(it->second.next_proxied, w.actor.proxied);
    released = true;
    mbarrier_arrive(*a.cta, a.address, it->second, 1, a.lane);
  }
  if (released) w.release();
}

bool decode_copy(Decoder& d) {
  Inst& out = *d.out;
  if (d.in->opcode != "cp" || !d.in->has("async") || d.in->has("bulk")) return false;
  d.take("async");
  if (d.take("commit_group")) {
    d.finish();
    out.run = commit;
    return true;
  }
  bool all = d.take("wait_all");
  if (all || d.take("wait_group")) {
    d.finish();
    out.imm = all ? -1 : static_cast<int64_t>(d.literal(0));
    out.run = wait;
    return true;
  }
  bool cg = d.take_one("ca cg") == 1;
  d.take_one("shared shared::cta"), d.take("global");
  bool policy = d.take("L2::cache_hint");
  d.take_one("L2::64B L2::128B L2::256B");
  d.finish();
  out.at.push_back(d.address(d.operand(0), Space::shared));
  out.at.push_back(d.address(d.operand(1), Space::global));
  out.a = static_cast<u32>(d.literal(2));
  if ((out.a != 16 && out.a != 8 && out.a != 4) || (cg && out.a != 16))
    throw PtxError(d.in->line, "cp.async of " + std::to_string(out.a) + " bytes");
  size_t rest = d.operands() - 3 - (policy ? 1 : 0);
  if (rest) {
    bool predicate = d.bits_of(d.operand(3)) == 1;
    out.b = predicate ? 2 : 1;
    d.add_source(3, predicate ? 1 : 32);
  }
  out.run = copy;
  return true;
}

}  // namespace l4k::emu
