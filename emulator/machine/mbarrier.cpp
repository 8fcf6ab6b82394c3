// mbarrier: init, arrive, expect, test, wait.
#include <bit>
#include <utility>

#include "machine/async.h"
#include "machine/decode.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;
constexpr int64_t kMaxTx = (1 << 20) - 1;
constexpr u32 kMaxCount = (1 << 20) - 1;

// Completes the phase when nothing is outstanding.
void settle(Cta& cta, u32 offset, Mbarrier& b) {
  Machine& m = Machine::get();
  ++m.progress;
  if (b.pending || b.tx) return;
  ++b.phase;
  b.pending = b.count;
  b.done_seen = b.next_seen;
  b.done_proxied = b.next_proxied;
  b.done_sight = std::exchange(b.next_sight, {});
  b.next_seen.assign(b.next_seen.size(), 0);
  b.next_proxied.assign(b.next_proxied.size(), 0);
  for (auto& other : cta.cluster->ctas)
    for (auto& w : other->warps)
      if (w->wait == Wait::mbarrier && w->wait_cta == &cta && w->wait_address == offset)
        w->notified = true;
}

// in.b: the address is in a shared space
SharedPlace place_of(Warp& w, const Inst& in, int lane) {
  return mbarrier_place(w, address_of(w, in.at[0], lane), in.b, lane);
}
SharedPlace own_place_of(Warp& w, const Inst& in, int lane) {
  SharedPlace at = place_of(w, in, lane);
  if (at.cta != w.cta)
    fault_at("bad-operand", in.ptx->text() + " takes an mbarrier of its own CTA", lane, at.offset);
  return at;
}

void init(Warp& w, const Inst& in) {
  const u32* count = w.reg<u32>(in.s[0]);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = own_place_of(w, in, i);
    if (!count[i] || count[i] > kMaxCount)
      fault_at("mbarrier-count", "mbarrier.init with a count of " + std::to_string(count[i]), i,
               at.offset);
    if (at.cta->mbarriers.count(at.offset))
      fault_at("mbarrier-overwritten",
               "mbarrier.init of a live mbarrier; mbarrier.inval comes first", i, at.offset);
    at.cta->shared->write(at.offset, 8, w.actor, i, Writer::generic);
    Mbarrier b;
    b.count = b.pending = count[i];
    b.init_epoch = w.actor.epoch();
    b.next_seen.assign(w.actor.seen.size(), 0);
    b.next_proxied = b.done_seen = b.done_proxied = b.next_seen;
    at.cta->mbarriers[at.offset] = std::move(b);
  }
  ++w.m->progress;
}

void invalidate(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = own_place_of(w, in, i);
    find_mbarrier(w, at, i);
    at.cta->mbarriers.erase(at.offset);
    at.cta->shared->write(at.offset, 8, w.actor, i, Writer::generic);  // behind its other users
    at.cta->shared->forget(at.offset, 8);
  }
}

void expect(Mbarrier& b, u32 bytes, const SharedPlace& at, int lane) {
  b.tx += bytes;
  if (b.tx > kMaxTx)
    fault_at(
        "mbarrier-tx-overflow",
        "the transaction count reaches " + std::to_string(b.tx) + " bytes; it holds up to 1048575",
        lane, at.offset);
}

// in.a: 1 expect_tx, 2 arrive, 4 drop, 8 relaxed; s[0]: count or bytes (in.c: has it)
void arrive(Warp& w, const Inst& in) {
  bool released = false;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = place_of(w, in, i);
    Mbarrier& b = find_mbarrier(w, at, i);
    u32 value = in.c ? w.reg<u32>(in.s[0])[i] : 1;
    if (in.targets) w.reg<u64>(in.d[0])[i] = b.phase;
    if (in.a & 1) expect(b, value, at, i);
    if (in.a & 2) {
      if (!(in.a & 8)) {
        join(b.next_seen, w.actor.seen);
        join(b.next_proxied, w.actor.proxied);
        b.next_sight.join(w.sight);
        if (at.cta != w.cta) {
          w.m->publish(*w.cta, &w);
          b.next_sight.acquired = w.m->instructions;
          if (!at.cta->grid_seen.empty()) at.cta->grid_seen[w.cta->linear] = w.m->instructions;
        }
        w.m->publish_warp(w);
        released = true;
      }
      if (in.a & 4) --b.count;
      mbarrier_arrive(*at.cta, at.offset, b, in.a & 1 ? 1 : value, i);
    } else {
      settle(*at.cta, at.offset, b);
    }
  }
  if (released) w.release();
}

// mbarrier.complete_tx and the copy engine's own completions.
void complete_tx(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = place_of(w, in, i);
    find_mbarrier(w, at, i);
    mbarrier_complete(*at.cta, at.offset, w.reg<u32>(in.s[0])[i], w.actor.seen, w.actor.proxied, 0);
  }
}

// in.a: 1 parity, 2 try (may wait), 4 relaxed; s[0]: parity or state
void wait(Warp& w, const Inst& in) {
  u32 done = 0;
  int first = -1;
  SharedPlace first_at{};
  u32 first_parity = 0;
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = own_place_of(w, in, i);
    Mbarrier& b = find_mbarrier(w, at, i);
    bool complete;
    u32 parity;
    if (in.a & 1) {
      parity = w.reg<u32>(in.s[0])[i];
      if (parity > 1)
        fault_at("mbarrier-parity",
                 "a phase parity of " + std::to_string(parity) + "; it is 0 or 1", i, at.offset);
      complete = (b.phase & 1) != parity;
    } else {
      u64 token = w.reg<u64>(in.s[0])[i];
      parity = static_cast<u32>(token & 1);
      complete = b.phase > token;
    }
    done |= u32(complete) << i;
    if (!complete && first < 0) first = i, first_at = at, first_parity = parity;
  }
  // try_wait may give up, in random mode: it belongs in a loop.
  bool gives_up = (in.a & 2) && w.m->settings.mode == Mode::random && w.m->chance(2);
  if (first >= 0 && !w.timed_out && !gives_up) {
    bool again = w.poll_pc == w.pc && w.poll_progress == w.m->progress;
    w.poll_count = again ? w.poll_count + 1 : 0;
    w.poll_pc = w.pc, w.poll_progress = w.m->progress;
    if ((in.a & 2) || w.poll_count >= 4) {
      w.wait_cta = first_at.cta;
      w.wait_address = first_at.offset;
      w.wait_parity = first_parity;
      return w.park(Wait::mbarrier);
    }
  }
  w.timed_out = false;
  if (!(in.a & 4))
    for (u32 l = done; l; l &= l - 1) {
      int i = std::countr_zero(l);
      Mbarrier& b = find_mbarrier(w, place_of(w, in, i), i);
      u32 own = w.actor.seen[w.actor.id];
      join(w.actor.seen, b.done_seen);
      join(w.actor.proxied, b.done_proxied);
      w.actor.seen[w.actor.id] = own;
      w.sight.join(b.done_sight);
    }
  if (done) ++w.counters().waits;
  u32& p = *w.reg<u32>(in.d[0]);
  p = (p & ~w.active) | done;
}

void pending_count(Warp&, const Inst&) { fault("not-implemented", "mbarrier.pending_count"); }

// cp.async.mbarrier.arrive: in.a: noinc
void arrive_after_copies(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = place_of(w, in, i);
    Mbarrier& b = find_mbarrier(w, at, i);
    if (!in.a) ++b.pending;
    w.deferred_arrives.push_back({at.cta, at.offset, w.copy_seq, i});
  }
  land_copies(w, 0, w.active);  // lanes without copies in flight arrive at once
}

}  // namespace

SharedPlace mbarrier_place(Warp& w, u64 address, bool shared_space, int lane) {
  if (!shared_space && generic_space(&address) != Space::shared)
    fault_at("shared-out-of-bounds", "an mbarrier must be in shared memory", lane, address);
  check_aligned(address, 8, lane);
  SharedPlace at = shared_place(w, address, lane);
  at.cta->shared->check_bounds(at.offset, 8, lane);
  return at;
}

Mbarrier& find_mbarrier(Warp& w, const SharedPlace& at, int lane) {
  auto it = at.cta->mbarriers.find(at.offset);
  if (it == at.cta->mbarriers.end())
    fault_at("mbarrier-uninitialised", "no mbarrier was initialised here", lane, at.offset);
  u32 e = it->second.init_epoch;
  int64_t fenced = it->second.fenced_phase;  // then a relaxed cluster barrier is enough
  bool ordered =
      (e & 0x3fffff) <= w.actor.seen[e >> 22] || (fenced >= 0 && w.cluster_passed >= fenced);
  if (!ordered)
    fault_at("shared-race", "uses an mbarrier with no barrier between its initialisation and here",
             lane, at.offset);
  at.cta->shared->note_read(at.offset, 8, w.actor);
  return it->second;
}

void find_copy_mbarrier(Warp& w, const SharedPlace& at, int lane) {
  const Mbarrier& b = find_mbarrier(w, at, lane);
  if (b.fenced_phase < 0 && (b.init_epoch & 0x3fffff) > w.actor.proxied[b.init_epoch >> 22])
    fault_at(
        "proxy-fence-missing",
        "a bulk copy completes on an mbarrier with no fence.mbarrier_init or fence.proxy.async "
        "between its initialisation and here",
        lane, at.offset);
}

void mbarrier_arrive(Cta& cta, u32 offset, Mbarrier& b, u32 count, int lane) {
  if (count > b.pending)
    fault_at("mbarrier-over-arrival",
             std::to_string(count) + " arrivals, but phase " + std::to_string(b.phase) +
                 " expects only " + std::to_string(b.pending) + " more of " +
                 std::to_string(b.count),
             lane, offset);
  if (!count || count > kMaxCount)
    fault_at("mbarrier-count", "mbarrier.arrive with a count of " + std::to_string(count), lane,
             offset);
  b.pending -= count;
  if (!b.pending && b.tx < 0)
    fault_at(
        "mbarrier-tx-overflow",
        "copies have delivered " + std::to_string(-b.tx) + " bytes more than the phase expects",
        lane, offset);
  settle(cta, offset, b);
}

void mbarrier_complete(Cta& cta, u32 offset, u32 bytes, const Clock& seen, const Clock& proxied,
                       u32 agent_epoch) {
  auto it = cta.mbarriers.find(offset);
  if (it == cta.mbarriers.end())
    fault_at("mbarrier-uninitialised", "a copy completes on a place that is no mbarrier", -1,
             offset);
  Mbarrier& b = it->second;
  b.tx -= bytes;
  if (b.tx < -kMaxTx || (!b.pending && b.tx < 0))
    fault_at("mbarrier-tx-overflow",
             "a copy delivers " + std::to_string(bytes) + " bytes, " + std::to_string(-b.tx) +
                 " more than phase " + std::to_string(b.phase) + " expects",
             -1, offset);
  join(b.next_seen, seen);
  join(b.next_proxied, proxied);
  if (agent_epoch) {
    u32& clock = b.next_seen[agent_epoch >> 22];
    clock = std::max(clock, agent_epoch & 0x3fffff);
  }
  settle(cta, offset, b);
}

bool decode_mbarrier(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  bool after_copies = op == "cp" && d.in->has("mbarrier") && d.in->has("arrive");
  if (op != "mbarrier" && !after_copies) return false;
  d.take("b64");
  int space = d.take_one("shared shared::cta shared::cluster");
  out.b = space >= 0;
  Space state_space = space >= 0 ? Space::shared : Space::none;
  if (after_copies) {
    d.take("async"), d.take("mbarrier"), d.take("arrive");
    out.a = d.take("noinc");
    d.finish();
    out.at.push_back(d.address(d.operand(0), state_space));
    out.run = arrive_after_copies;
    return true;
  }
  int what = d.take_one(
      "init inval arrive arrive_drop test_wait try_wait expect_tx complete_tx pending_count");
  if (what == 2 || what == 3) {
    out.a =
        2u | (d.take("expect_tx") ? 1u : 0) | (what == 3 ? 4u : 0) | (d.take("relaxed") ? 8u : 0);
    if (d.take("noComplete")) d.unsupported();
    d.take("release"), d.take_one("cta cluster");
    d.finish();
    // The state may be left out for remote barriers written as `mbarrier.arrive [addr]`.
    size_t at = d.operand(0).kind == PtxOperand::Kind::address ? 0 : 1;
    if (at && d.operand(0).kind == PtxOperand::Kind::reg) d.add_target(0, 64);
    out.at.push_back(d.address(d.operand(at), state_space));
    if (d.operands() > at + 1) d.add_source(at + 1, 32), out.c = 1;
    if ((out.a & 1) && !out.c) throw PtxError(d.in->line, "expect_tx without a count");
    out.run = arrive;
    return true;
  }
  if (what == 4 || what == 5) {
    out.a = (d.take("parity") ? 1u : 0) | (what == 5 ? 2u : 0) | (d.take("relaxed") ? 4u : 0);
    d.take("acquire"), d.take_one("cta cluster");
    d.finish();
    d.add_target(0, 1);
    out.at.push_back(d.address(d.operand(1), state_space));
    d.add_source(2, out.a & 1 ? 32 : 64);
    out.run = wait;
    return true;
  }
  if (what == 6 || what == 7) {
    d.take("relaxed"), d.take_one("cta cluster");
    out.a = 1;
    out.c = 1;
    out.run = what == 6 ? arrive : complete_tx;
  } else if (what == 0) {
    out.run = init;
  } else if (what == 1) {
    out.run = invalidate;
  } else if (what == 8) {
    out.run = pending_count;
    return true;
  } else {
    d.unsupported();
  }
  d.finish();
  out.at.push_back(d.address(d.operand(0), state_space));
  if (what != 1) d.add_source(1, 32);
  return true;
}

}  // namespace l4k::emu
