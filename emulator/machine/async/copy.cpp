// cp.async: copies of 4, 8 or 16 bytes per thread that land when their group is waited for.
#include <bit>
#include <cstring>

#include "machine/async/families.h"
#include "machine/async/mbarrier.h"
#include "machine/isa/lanes.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

// cp.async.mbarrier.arrive of these lanes: those whose copies have all landed.
void fire_arrives(Warp& w, u32 lanes) {
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
    if (it == a.cta->mbarriers.end()) {
      complain_at("mbarrier-uninitialised",
                  "cp.async.mbarrier.arrive on a place that is no mbarrier", a.lane, a.address);
      continue;
    }
    join(it->second.next_seen, w.actor.seen);
    join(it->second.next_proxied, w.actor.proxied);
    released = true;
    mbarrier_arrive(*a.cta, a.address, it->second, 1, a.lane);
  }
  if (released) w.release();
}

// Lands these lanes' copies up to a sequence number, then the arrivals that wait for them.
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
  fire_arrives(w, lanes);
}

// What the optional operand limits the source to: a size, or nothing where a predicate is true.
enum class SourceLimit : uint8_t { none, bytes, ignored };
struct CopyAsync {
  uint8_t bytes;
  SourceLimit limit;
};

u32 source_bytes(Warp& w, const Inst& in, int lane) {
  const auto m = in.modifiers.as<CopyAsync>();
  if (m.limit == SourceLimit::none) return m.bytes;
  if (m.limit == SourceLimit::ignored) return *w.reg<u32>(in.s[0]) >> lane & 1 ? 0 : m.bytes;
  return w.reg<u32>(in.s[0])[lane];
}

// Ordering and bounds are those of the moment of issue.
void issue_lane(Warp& w, const Inst& in, CpAsync& c, int i) {
  u64 destination = address_of(w, in.at[0], i), source = address_of(w, in.at[1], i);
  u32 bytes = source_bytes(w, in, i);
  if (bytes > c.bytes)
    fault_at("bad-operand",
             "cp.async with a source size of " + std::to_string(bytes) + " for " +
                 std::to_string(c.bytes) + " bytes",
             i, source);
  SharedPlace at = shared_place(w, destination, i);
  if (at.cta != w.cta)
    fault_at("shared-out-of-bounds", "cp.async writes its own CTA's shared memory only", i,
             destination);
  check_aligned(at.offset, c.bytes, i);
  c.destination[i] = at.offset;
  c.source[i] = source;
  c.source_bytes[i] = bytes;
  check_no_mbarrier(*at.cta, at.offset, c.bytes, i);
  at.cta->shared->write(at.offset, c.bytes, w.actor, i, Writer::cp_async);
  if (!bytes) return;
  if (generic_space(&source) != Space::global)
    fault_at("global-out-of-bounds", "cp.async reads global memory only", i, source);
  check_aligned(source, c.bytes, i);
  global_pointer(w, i, source, bytes, false);
  note_global(w, source, bytes, Access::copy_read, i);
}

// The copies of the lanes in c.mask are in flight.
void begin(Warp& w, const CpAsync& c) {
  u64 destination[32] = {};
  u32 reading = 0;
  for (u32 l = c.mask; l; l &= l - 1) {
    int i = std::countr_zero(l);
    destination[i] = c.destination[i];
    reading |= u32(c.source_bytes[i] != 0) << i;
    w.cta->shared->begin_pending_write(c.destination[i], c.bytes);
  }
  if (reading) count_global(w, c.source, reading, c.bytes);
  count_shared(w, destination, c.mask, c.bytes);
  w.copies.push_back(c);
  // Early: the data is there at once; whoever looks before the wait is still wrong, but gets it.
  if (w.m->settings.mode == Mode::early) land_copies(w, w.copy_seq, c.mask);
}

void copy(Warp& w, const Inst& in) {
  CpAsync c;
  c.bytes = in.modifiers.as<CopyAsync>().bytes;
  c.group = w.copy_group;
  c.sequence = ++w.copy_seq;
  c.inst = &in;
  c.land = land_copies;
  try {
    for (u32 l = w.active; l; l &= l - 1) {
      int i = std::countr_zero(l);
      issue_lane(w, in, c, i);
      c.mask |= 1u << i;
    }
  } catch (const Fault&) {
    if (c.mask) begin(w, c);
    throw;
  }
  begin(w, c);
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

struct ArriveAfterCopies {
  bool shared;  // the address is in a shared space, else generic
  bool noinc;   // does not raise the count that it lowers
};
void arrive_after_copies(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<ArriveAfterCopies>();
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = mbarrier_place(w, address_of(w, in.at[0], i), m.shared, i);
    Mbarrier& b = find_mbarrier(w, at, i);
    if (!m.noinc) ++b.pending;
    w.deferred_arrives.push_back({at.cta, at.offset, w.copy_seq, i});
  }
  land_copies(w, 0, w.active);  // lanes without copies in flight arrive at once
}

bool decode_arrive(Decoder& d) {
  d.take("async"), d.take("mbarrier"), d.take("arrive"), d.take("b64");
  ArriveAfterCopies m{};
  m.shared = d.take_one("shared shared::cta shared::cluster") >= 0;
  m.noinc = d.take("noinc");
  d.finish();
  d.add_at(0, m.shared ? Space::shared : Space::none);
  d.out->modifiers.store(m);
  d.out->run = arrive_after_copies;
  return true;
}

}  // namespace

bool decode_copy(Decoder& d) {
  Inst& out = *d.out;
  if (d.in->opcode != "cp" || !d.in->has("async") || d.in->has("bulk")) return false;
  if (d.in->has("mbarrier") && d.in->has("arrive")) return decode_arrive(d);
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
  d.add_at(0, Space::shared);
  d.add_at(1, Space::global);
  uint64_t bytes = d.literal(2);
  if ((bytes != 16 && bytes != 8 && bytes != 4) || (cg && bytes != 16))
    throw PtxError(d.in->line, "cp.async of " + std::to_string(static_cast<u32>(bytes)) + " bytes");
  CopyAsync m{static_cast<uint8_t>(bytes), SourceLimit::none};
  size_t rest = d.operands() - 3 - (policy ? 1 : 0);
  if (rest) {
    bool predicate = d.bits_of(d.operand(3)) == 1;
    m.limit = predicate ? SourceLimit::ignored : SourceLimit::bytes;
    d.add_source(3, predicate ? 1 : 32);
  }
  out.modifiers.store(m);
  out.run = copy;
  return true;
}

}  // namespace l4k::emu
