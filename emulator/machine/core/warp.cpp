// The interpreter loop, divergence, calls.
#include <bit>
#include <cstring>

#include "machine/core/machine.h"

namespace l4k::emu {

void Warp::execute(const Inst& in, uint32_t lanes) {
  active = lanes;
  ++m->instructions;
  ++tally[pc].issued;
  if (in.checks_itself) return in.run(*this, in);
  uint32_t bad = 0, tags = 0;
  for (int i = 0; i < in.sources; ++i)
    bad |= state[in.s[i].index].bad, tags |= state[in.s[i].index].tag;
  if (in.list_use == ListUse::read)
    for (const Reg& s : in.list) bad |= state[s.index].bad, tags |= state[s.index].tag;
  if (tags & RegState::kResult) touch_results(in);
  if (bad & lanes) return execute_undefined(in, lanes);
  in.run(*this, in);
  if (regrouped) return;
  for (int i = 0; i < in.targets; ++i) written(in.d[i], lanes);
  if (in.list_use == ListUse::written) {
    for (const Reg& d : in.list) written(d, lanes);
    if (!undefined_results.empty()) settle_loads();
  }
}

void Warp::run(uint32_t budget) {
  while (budget-- && wait == Wait::none && !exited) {
    const Inst& in = program->code[pc];
    uint32_t lanes = mask;
    if (in.predicate.index) {
      active = mask;
      use(in.predicate, mask);
      uint32_t p = *reg<uint32_t>(in.predicate);
      lanes &= in.predicate_negated ? ~p : p;
    }
    next = pc + 1;
    regrouped = false;
    if (lanes) execute(in, lanes);
    if (regrouped) continue;
    pc = next;
    if (pc >= join) {
      for (uint32_t l = mask; l; l &= l - 1) lane_pc[std::countr_zero(l)] = pc;
      regroup();
    }
  }
}

// Instructions whose lanes do not depend on each other and are performed in order.
static bool lane_by_lane(const Inst& in) {
  static constexpr const char* kOpcodes[] = {"ld", "st", "atom", "red", "cp", "mbarrier"};
  for (const char* opcode : kOpcodes)
    if (in.ptx && in.ptx->opcode == opcode) return true;
  return false;
}

uint32_t Warp::leave_out(const Fault& f) {
  const Inst& in = current();
  uint32_t undefined = active, rest = 0;
  if (f.lane >= 0 && lane_by_lane(in)) {
    uint32_t bad = 0;
    for (int i = 0; i < in.sources; ++i) bad |= state[in.s[i].index].bad;
    if (in.list_use == ListUse::read)
      for (const Reg& s : in.list) bad |= state[s.index].bad;
    if (&*f.kind != find_fault_kind("register-in-flight")) bad = 0;
    // A source is undefined: no lane has been performed. Else those before the lane at fault have.
    undefined = bad & active ? bad & active : active & 1u << f.lane;
    uint32_t done = bad & active ? 0 : active & ((1u << f.lane) - 1);
    set_results(in, done, 0);
    rest = active & ~done & ~undefined;
  }
  set_results(in, undefined, undefined);
  settle_loads();
  if (!rest) step_over();
  return rest;
}

void Warp::set_results(const Inst& in, uint32_t lanes, uint32_t undefined) {
  for (const Reg& d : in.d)
    if (d.index) written(d, lanes, undefined);
  size_t results = in.list_use == ListUse::written ? in.list.size() : in.accumulators;
  for (size_t i = 0; i < results; ++i)
    if (!state[in.list[i].index].in_flight()) written(in.list[i], lanes, undefined);
}

void Warp::perform_rest(uint32_t lanes) {
  regrouped = false;
  next = pc + 1;
  execute(current(), lanes);
  if (!regrouped) step_over();
}

void Warp::step_over() {
  ++pc;
  for (uint32_t l = mask; l; l &= l - 1) lane_pc[std::countr_zero(l)] = pc;
  regroup();
}

// Smallest program counter first: lanes that are ahead wait until the others catch up.
void Warp::regroup() {
  uint32_t candidates = live & ~stalled;
  if (!candidates) candidates = live;
  uint32_t lowest = ~0u;
  for (uint32_t l = candidates; l; l &= l - 1)
    lowest = std::min(lowest, lane_pc[std::countr_zero(l)]);
  pc = lowest;
  mask = 0;
  join = ~0u;
  for (uint32_t l = live; l; l &= l - 1) {
    uint32_t lane = static_cast<uint32_t>(std::countr_zero(l)), at = lane_pc[lane];
    if (at == lowest) mask |= 1u << lane;
    else if (at > lowest && at < join) join = at;
  }
  stalled &= ~mask;
  gathering &= ~mask;
}

void Warp::branch(uint32_t taken, uint32_t target) {
  if (taken == mask && mask == live) {
    next = target;
    return;
  }
  for (uint32_t l = mask; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    lane_pc[lane] = taken >> lane & 1 ? target : pc + 1;
  }
  regroup();
  regrouped = true;
}

void Warp::park(Wait why) {
  regrouped = true;
  for (uint32_t l = mask; l; l &= l - 1) lane_pc[std::countr_zero(l)] = pc;
  bool diverged = mask != live;
  stalled |= mask;
  if (live & ~stalled) return regroup();
  wait = diverged ? Wait::poll : why;
  wait_progress = m->progress;
  notified = false;
}

void Warp::wake() {
  wait = Wait::none;
  notified = false;
  stalled = gathering = 0;
  if (mask != live) regroup();
}

void Warp::use_frame() {
  Frame& f = *frames.back();
  program = f.program;
  tally = f.counters;
  base[0] = f.registers.data();
  base[1] = const_cast<uint8_t*>(program->pool.data());
  state = f.states.data();
  bias[static_cast<int>(Bias::local_frame)] = f.local_base;
}

void Warp::push_frame(const Program* callee, uint32_t lanes) {
  auto f = std::make_unique<Frame>();
  f->program = callee;
  f->counters = m->counters_of(*callee);
  f->registers.resize(callee->register_bytes);
  f->states.resize(callee->offset.size());
  for (uint32_t i = 0; i < kSpecialCount; ++i) f->states[i].bad = 0;
  if (!callee->ptx->entry) f->params.resize(callee->ptx->param_bytes * 32);
  f->local_base = (local_top + 15) / 16 * 16;
  f->live = live;
  for (uint32_t l = mask; l; l &= l - 1) lane_pc[std::countr_zero(l)] = pc + 1;
  std::memcpy(f->lane_pc, lane_pc, sizeof lane_pc);
  local_top = f->local_base + callee->ptx->local_bytes;
  if (!frames.empty())
    std::memcpy(f->registers.data(), frames.back()->registers.data(),
                callee->offset[kSpecialCount - 1] + 128);
  if (frames.size() > 200) fault("stack-overflow", "calls are nested more than 200 deep");
  frames.push_back(std::move(f));
  use_frame();
  pc = 0;
  mask = live = lanes;
  join = ~0u;
  regrouped = true;
}

void Warp::pop_frame(uint32_t lanes) {
  regrouped = true;
  live &= ~lanes;
  if (live) {
    for (uint32_t l = mask & ~lanes; l; l &= l - 1) lane_pc[std::countr_zero(l)] = pc + 1;
    return regroup();
  }
  auto f = std::move(frames.back());
  frames.pop_back();
  local_top = f->local_base;
  std::memcpy(lane_pc, f->lane_pc, sizeof lane_pc);
  live = f->live & ~dead;
  use_frame();
  if (!live) {
    exited = true;
    m->warp_exited(*this);
  } else {
    regroup();
  }
}

void Warp::exit_lanes(uint32_t lanes) {
  regrouped = true;
  dead |= lanes;
  if (frames.size() > 1) return pop_frame(lanes);
  live &= ~lanes;
  if (!live) {
    exited = true;
    m->warp_exited(*this);
    return;
  }
  for (uint32_t l = mask & ~lanes; l; l &= l - 1) lane_pc[std::countr_zero(l)] = pc + 1;
  regroup();
}

uint8_t* Warp::local_memory(int lane, uint64_t offset, uint64_t bytes) {
  if (offset > local_top || bytes > local_top - offset)
    fault_at("local-out-of-bounds",
             "local memory of " + std::to_string(local_top) + " bytes accessed at " + hex(offset),
             lane, offset);
  if (local_top > local_bytes) {
    uint64_t grown = local_top * 2;
    std::vector<uint8_t> bigger(grown * 32, 0xff);
    for (uint64_t l = 0; l < 32; ++l)
      if (local_bytes)
        std::memcpy(bigger.data() + l * grown, local.data() + l * local_bytes, local_bytes);
    local.swap(bigger);
    local_bytes = grown;
  }
  return local.data() + static_cast<uint64_t>(lane) * local_bytes + offset;
}

bool Warp::has_waited() {
  if (dependency_waited) return true;
  for (uint32_t e : cta->cluster->dependency_waits) dependency_waited |= ordered(e, actor.seen);
  return dependency_waited;
}

void Warp::release() {
  actor.tick();
  actor.synced = actor.seen[actor.id];
}

}  // namespace l4k::emu
