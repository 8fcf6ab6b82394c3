// mbarrier: init, arrive, expect, test, wait.
#include "machine/async/mbarrier.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <utility>

#include "machine/async/families.h"
#include "machine/isa/lanes.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;
constexpr int64_t kMaxTx = (1 << 20) - 1;
constexpr u32 kMaxCount = (1 << 20) - 1;

// Completes the phase when nothing is outstanding.
void settle(Cta& cta, u32 offset, Mbarrier& b) {
  Machine& m = *cta.warps[0]->m;
  ++m.progress;
  if (b.pending || b.tx) return;
  ++b.phase;
  b.pending = b.count;
  b.done_seen = b.next_seen;
  b.done_proxied = b.next_proxied;
  b.done_visibility = std::exchange(b.next_visibility, {});
  b.next_seen.assign(b.next_seen.size(), 0);
  b.next_proxied.assign(b.next_proxied.size(), 0);
  for (auto& other : cta.cluster->ctas)
    for (auto& w : other->warps)
      if (w->wait == Wait::mbarrier && w->wait_cta == &cta && w->wait_address == offset)
        w->notified = true;
}

// Of init, inval and complete_tx.
struct MbarrierAddress {
  bool shared;  // the address is in a shared space, else generic
};

SharedPlace place_of(Warp& w, const Inst& in, bool shared, int lane) {
  return mbarrier_place(w, address_of(w, in.at[0], lane), shared, lane);
}
SharedPlace own_place_of(Warp& w, const Inst& in, bool shared, int lane) {
  SharedPlace at = place_of(w, in, shared, lane);
  if (at.cta != w.cta)
    fault_at("bad-operand", in.ptx->text() + " takes an mbarrier of its own CTA", lane, at.offset);
  return at;
}

bool initialised_before(const Mbarrier& b, const Clock& seen) {
  return std::all_of(b.init_epochs.begin(), b.init_epochs.end(),
                     [&](u32 epoch) { return ordered(epoch, seen); });
}

// An mbarrier.init that stores what is there, before anything else has happened to the mbarrier.
bool initialise_again(Warp& w, Mbarrier& b, u32 count, int lane, u32 offset) {
  if (b.count != count || b.pending != count || b.tx || b.phase) return false;
  if (b.init_epochs.back() != w.actor.epoch()) {
    if (initialised_before(b, w.actor.seen)) b.init_epochs.clear();
    b.init_epochs.push_back(w.actor.epoch());
  }
  b.fenced_phase = -1;
  complain_at("mbarrier-initialised-again",
              "mbarrier.init of a live mbarrier, which has this count and has not been used", lane,
              offset);
  return true;
}

void init(Warp& w, const Inst& in) {
  const u32* count = w.reg<u32>(in.s[0]);
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = own_place_of(w, in, in.modifiers.as<MbarrierAddress>().shared, i);
    if (!count[i] || count[i] > kMaxCount)
      fault_at("mbarrier-count", "mbarrier.init with a count of " + std::to_string(count[i]), i,
               at.offset);
    if (auto it = at.cta->mbarriers.find(at.offset); it != at.cta->mbarriers.end()) {
      if (initialise_again(w, it->second, count[i], i, at.offset)) continue;
      complain_at("mbarrier-overwritten",
                  "mbarrier.init of a live mbarrier; mbarrier.inval comes first", i, at.offset);
    }
    at.cta->shared->write(at.offset, 8, w.actor, i, Writer::generic);
    Mbarrier b;
    b.count = b.pending = count[i];
    b.init_epochs = {w.actor.epoch()};
    b.next_seen.assign(w.actor.seen.size(), 0);
    b.next_proxied = b.done_seen = b.done_proxied = b.next_seen;
    at.cta->mbarriers[at.offset] = std::move(b);
  }
  ++w.m->progress;
}

// Without a read noted: mbarrier.inval is a write only.
Mbarrier& live_mbarrier(Warp& w, const SharedPlace& at, int lane) {
  auto it = at.cta->mbarriers.find(at.offset);
  if (it == at.cta->mbarriers.end())
    fault_at("mbarrier-uninitialised", "no mbarrier was initialised here", lane, at.offset);
  int64_t fenced = it->second.fenced_phase;  // then a relaxed cluster barrier is enough
  if (!initialised_before(it->second, w.actor.seen) && (fenced < 0 || w.cluster_passed < fenced))
    complain_at("shared-race",
                "uses an mbarrier with no barrier between its initialisation and here", lane,
                at.offset);
  return it->second;
}

void invalidate(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = own_place_of(w, in, in.modifiers.as<MbarrierAddress>().shared, i);
    live_mbarrier(w, at, i);
    at.cta->mbarriers.erase(at.offset);
    at.cta->shared->write(at.offset, 8, w.actor, i, Writer::generic);  // after its other users
    at.cta->shared->forget(at.offset, 8);
  }
}

void expect(Mbarrier& b, u32 bytes, const SharedPlace& at, int lane) {
  b.tx += bytes;
  if (b.tx > kMaxTx)
    complain_at(
        "mbarrier-tx-overflow",
        "the transaction count reaches " + std::to_string(b.tx) + " bytes; it holds up to 1048575",
        lane, at.offset);
}

// What an arrival passes on to those who wait for the phase.
void release_to(Warp& w, const SharedPlace& at, Mbarrier& b) {
  join(b.next_seen, w.actor.seen);
  join(b.next_proxied, w.actor.proxied);
  b.next_visibility.join(w.visibility);
  if (at.cta != w.cta) {
    w.m->publish(*w.cta, &w);
    b.next_visibility.acquired = w.m->instructions;
    if (!at.cta->grid_seen.empty()) at.cta->grid_seen[w.cta->linear] = w.m->instructions;
  }
  w.m->publish_warp(w);
}

struct Arrive {
  bool shared = false;
  bool expects = false, arrives = false, drops = false, relaxed = false;
  bool has_value = false;  // s[0]: bytes to expect, or the count of arrivals
};
void arrive(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<Arrive>();
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = place_of(w, in, m.shared, i);
    Mbarrier& b = find_mbarrier(w, at, i);
    u32 value = m.has_value ? w.reg<u32>(in.s[0])[i] : 1;
    if (in.targets) w.reg<u64>(in.d[0])[i] = b.phase;
    if (m.expects) expect(b, value, at, i);
    if (m.arrives) {
      if (!m.relaxed) release_to(w, at, b);
      if (m.drops) --b.count;
      mbarrier_arrive(*at.cta, at.offset, b, m.expects ? 1 : value, i);
    } else {
      settle(*at.cta, at.offset, b);
    }
  }
  if (m.arrives && !m.relaxed) w.release();
}

// mbarrier.complete_tx and the copy engine's own completions.
void complete_tx(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    SharedPlace at = place_of(w, in, in.modifiers.as<MbarrierAddress>().shared, i);
    find_mbarrier(w, at, i);
    mbarrier_complete(*at.cta, at.offset, w.reg<u32>(in.s[0])[i], w.actor.seen, w.actor.proxied, 0);
  }
}

struct TestWait {
  bool shared = false;
  bool parity = false;  // s[0] is a parity, else a state
  bool tries = false;   // may wait
  bool relaxed = false;
};

struct Phase {
  SharedPlace at;
  u32 parity;
  bool complete;
};
Phase test_phase(Warp& w, const Inst& in, const TestWait& m, int lane) {
  SharedPlace at = own_place_of(w, in, m.shared, lane);
  Mbarrier& b = find_mbarrier(w, at, lane);
  if (!m.parity) {
    u64 token = w.reg<u64>(in.s[0])[lane];
    return {at, static_cast<u32>(token & 1), b.phase > token};
  }
  u32 parity = w.reg<u32>(in.s[0])[lane];
  if (parity > 1)
    complain_at("mbarrier-parity", "a phase parity of " + std::to_string(parity) + "; it is 0 or 1",
                lane, at.offset);
  return {at, parity, (b.phase & 1) != (parity & 1)};
}

// Whether the warp waits instead of answering: try_wait at once, test_wait when it polls.
bool parks(Warp& w, const TestWait& m) {
  bool again = w.poll_pc == w.pc && w.poll_progress == w.m->progress;
  w.poll_count = again ? w.poll_count + 1 : 0;
  w.poll_pc = w.pc, w.poll_progress = w.m->progress;
  return m.tries || w.poll_count >= 4;
}

void wait(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<TestWait>();
  u32 done = 0;
  std::optional<Phase> open;  // the first that is not complete
  for (u32 l = w.active; l; l &= l - 1) {
    int i = std::countr_zero(l);
    Phase phase = test_phase(w, in, m, i);
    done |= u32(phase.complete) << i;
    if (!phase.complete && !open) open = phase;
  }
  // try_wait may give up, in random mode: it belongs in a loop.
  bool gives_up = m.tries && w.m->settings.mode == Mode::random && w.m->chance(2);
  if (open && !w.timed_out && !gives_up && parks(w, m)) {
    w.wait_cta = open->at.cta;
    w.wait_address = open->at.offset;
    w.wait_parity = open->parity;
    return w.park(Wait::mbarrier);
  }
  w.timed_out = false;
  if (!m.relaxed)
    for (u32 l = done; l; l &= l - 1) {
      int i = std::countr_zero(l);
      Mbarrier& b = find_mbarrier(w, place_of(w, in, m.shared, i), i);
      w.actor.acquire(b.done_seen, b.done_proxied);
      w.visibility.join(b.done_visibility);
    }
  if (done) ++w.counters().waits;
  w.set_predicate(in.d[0], done);
}

void pending_count(Warp&, const Inst&) { fault("not-implemented", "mbarrier.pending_count"); }

enum class Operation {
  init,
  inval,
  arrive,
  arrive_drop,
  test_wait,
  try_wait,
  expect_tx,
  complete_tx,
  pending_count
};
constexpr const char* kOperations =
    "init inval arrive arrive_drop test_wait try_wait expect_tx complete_tx pending_count";

Space space_of(bool shared) { return shared ? Space::shared : Space::none; }

void decode_arrive(Decoder& d, Arrive m) {
  m.arrives = true;
  m.expects = d.take("expect_tx"), m.relaxed = d.take("relaxed");
  if (d.take("noComplete")) d.unsupported();
  d.take("release"), d.take_one("cta cluster");
  d.finish();
  // The state may be left out for remote barriers written as `mbarrier.arrive [addr]`.
  size_t at = d.operand(0).kind == PtxOperand::Kind::address ? 0 : 1;
  if (at && d.operand(0).kind == PtxOperand::Kind::reg) d.add_target(0, 64);
  d.add_at(at, space_of(m.shared));
  m.has_value = d.operands() > at + 1;
  if (m.has_value) d.add_source(at + 1, 32);
  if (m.expects && !m.has_value) throw PtxError(d.in->line, "expect_tx without a count");
  d.out->modifiers.store(m);
  d.out->run = arrive;
}

void decode_wait(Decoder& d, TestWait m) {
  m.parity = d.take("parity"), m.relaxed = d.take("relaxed");
  d.take("acquire"), d.take_one("cta cluster");
  d.finish();
  d.add_target(0, 1);
  d.add_at(1, space_of(m.shared));
  d.add_source(2, m.parity ? 32 : 64);
  d.out->modifiers.store(m);
  d.out->run = wait;
}

// The operations that take an address and at most one value.
void decode_simple(Decoder& d, Handler h, bool shared, bool has_value = true) {
  d.finish();
  d.add_at(0, space_of(shared));
  if (has_value) d.add_source(1, 32);
  d.out->run = h;
}

}  // namespace

SharedPlace mbarrier_place(Warp& w, u64 address, bool shared_space, int lane) {
  if (!shared_space && generic_space(&address) != Space::shared)
    fault_at("shared-out-of-bounds", "an mbarrier must be in shared memory", lane, address);
  check_aligned(address, 8, lane);
  SharedPlace at = shared_place(w, address, lane, Use::mbarrier);
  at.cta->shared->check_bounds(at.offset, 8, lane);
  return at;
}

Mbarrier& find_mbarrier(Warp& w, const SharedPlace& at, int lane) {
  Mbarrier& b = live_mbarrier(w, at, lane);
  at.cta->shared->note_read(at.offset, 8, w.actor);
  return b;
}

void find_copy_mbarrier(Warp& w, const SharedPlace& at, int lane) {
  const Mbarrier& b = find_mbarrier(w, at, lane);
  if (b.fenced_phase < 0 && !initialised_before(b, w.actor.proxied))
    complain_at(
        "mbarrier-init-fence-missing",
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
  if (!b.pending && b.tx < 0) {
    complain_at(
        "mbarrier-tx-overflow",
        "copies have delivered " + std::to_string(-b.tx) + " bytes more than the phase expects",
        lane, offset);
    b.tx = 0;
  }
  settle(cta, offset, b);
}

void mbarrier_complete(Cta& cta, u32 offset, u32 bytes, const Clock& seen, const Clock& proxied,
                       u32 copy_epoch) {
  auto it = cta.mbarriers.find(offset);
  if (it == cta.mbarriers.end())
    return complain_at("mbarrier-uninitialised", "a copy completes on a place that is no mbarrier",
                       -1, offset);
  Mbarrier& b = it->second;
  b.tx -= bytes;
  if (b.tx < -kMaxTx || (!b.pending && b.tx < 0)) {
    complain_at("mbarrier-tx-overflow",
                "a copy delivers " + std::to_string(bytes) + " bytes, " + std::to_string(-b.tx) +
                    " more than phase " + std::to_string(b.phase) + " expects",
                -1, offset);
    b.tx = 0;
  }
  join(b.next_seen, seen);
  join(b.next_proxied, proxied);
  if (copy_epoch) {
    u32& clock = b.next_seen[epoch_actor(copy_epoch)];
    clock = std::max(clock, epoch_clock(copy_epoch));
  }
  settle(cta, offset, b);
}

bool decode_mbarrier(Decoder& d) {
  if (d.in->opcode != "mbarrier") return false;
  Inst& out = *d.out;
  d.take("b64");
  bool shared = d.take_one("shared shared::cta shared::cluster") >= 0;
  int operation = d.take_one(kOperations);
  if (operation < 0) d.unsupported();
  switch (static_cast<Operation>(operation)) {
    case Operation::arrive:
      decode_arrive(d, {.shared = shared});
      break;
    case Operation::arrive_drop:
      decode_arrive(d, {.shared = shared, .drops = true});
      break;
    case Operation::test_wait:
      decode_wait(d, {.shared = shared});
      break;
    case Operation::try_wait:
      decode_wait(d, {.shared = shared, .tries = true});
      break;
    case Operation::expect_tx:
      d.take("relaxed"), d.take_one("cta cluster");
      out.modifiers.store(Arrive{.shared = shared, .expects = true, .has_value = true});
      decode_simple(d, arrive, shared);
      break;
    case Operation::complete_tx:
      d.take("relaxed"), d.take_one("cta cluster");
      out.modifiers.store(MbarrierAddress{shared});
      decode_simple(d, complete_tx, shared);
      break;
    case Operation::init:
      out.modifiers.store(MbarrierAddress{shared});
      decode_simple(d, init, shared);
      break;
    case Operation::inval:
      out.modifiers.store(MbarrierAddress{shared});
      decode_simple(d, invalidate, shared, false);
      break;
    case Operation::pending_count:
      out.run = pending_count;
      break;
  }
  return true;
}

}  // namespace l4k::emu
