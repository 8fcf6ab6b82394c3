// States of a warp's registers: undefined, or in flight as operands of wgmma.
#include <bit>

#include "machine/core/machine.h"

namespace l4k::emu {

// Results of a wgmma that have been read must be fenced before the next wgmma uses their registers.
void Warp::touch_results(const Inst& in) {
  auto touch = [&](const Reg& s) {
    RegState& r = state[s.index];
    if (r.result()) r.set_fence(fence_count);
  };
  for (int i = 0; i < in.sources; ++i) touch(in.s[i]);
  if (in.list_use == ListUse::read)
    for (const Reg& s : in.list) touch(s);
}

uint32_t Warp::bad_source(const Reg& s, uint32_t lanes, bool propagates) {
  const RegState& r = state[s.index];
  uint32_t bad = r.bad & lanes;
  if (!bad) return 0;
  const std::string& name = register_name(s);
  int lane = std::countr_zero(bad);
  if (r.in_flight())
    fault("register-in-flight",
          "register " + name + " is an accumulator of a wgmma that has not been waited for", lane);
  if (propagates) return bad;
  std::string why = " is used and was never written";
  if (m->tally.left_out) why += ", or is the result of an instruction that was left out";
  fault("uninitialised-register", "register " + name + why, lane);
}

void Warp::busy_write(const Reg& d) {
  RegState& s = state[d.index];
  if (s.busy() == Busy::alias) {  // the copy is overwritten before its value was needed
    for (auto& op : wgmmas)
      std::erase_if(op->moves, [&](const DeferredMove& m) { return m.to.index == d.index; });
    s.tag = 0;
    return;
  }
  complain("register-in-flight",
           "register " + register_name(d) +
               (s.busy() == Busy::fragment ? " is written while a wgmma in flight reads it as A"
                                           : " is written while a wgmma accumulates into it"));
}

bool PendingWgmma::accumulates_into(const Reg& r) const {
  for (size_t i = 0; i < accumulators; ++i)
    if (inst->list[i].index == r.index) return true;
  return std::any_of(moves.begin(), moves.end(),
                     [&](const DeferredMove& m) { return m.to.index == r.index; });
}

void Warp::defer_move(const Reg& to, const Reg& from, uint32_t bytes) {
  for (size_t i = wgmmas.size(); i-- > 0;) {
    PendingWgmma& op = *wgmmas[i];
    if (!op.accumulates_into(from)) continue;
    op.moves.push_back({to, from, bytes, active, op.computed});
    RegState& s = state[to.index];
    s.bad |= active;
    s.tag = RegState::busy_tag(Busy::alias);
    return;
  }
}

void Warp::compute_one() {
  for (auto& op : wgmmas) {
    if (op->computed) continue;
    if (op->group != ~0u) op->compute(*this, *op);
    return;
  }
}

void Warp::check_warpgroup_exit() {
  uint32_t group = index / 4;
  if (group >= cta->wgmma_issues.size()) return;
  for (const auto& i : cta->wgmma_issues[group])
    if (!(i.warps >> index % 4 & 1))
      complain("missing-lane",
               "the warp ends, but the rest of its warpgroup executed " + i.inst->ptx->text());
}

}  // namespace l4k::emu
