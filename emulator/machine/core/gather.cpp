// Instructions that several lanes execute together: waiting for those that are not here yet.
#include <bit>

#include "machine/core/machine.h"

namespace l4k::emu {

// Notes that the lanes of `set` wait here for `missing`; faults when those cannot come, or when
// everybody whom they wait for waits for them in turn.
void Warp::check_missing(uint32_t set, uint32_t missing, const char* what) {
  auto who = [&] {
    return std::string(what) + " needs lanes " + hex(set | missing) + ", but only " + hex(set) +
           " execute it";
  };
  if (missing & (mask | ~live)) fault("missing-lane", who(), std::countr_zero(missing));
  for (uint32_t l = set; l; l &= l - 1) lacking[std::countr_zero(l)] = missing;
  uint32_t waiting = gathering | set, needed = missing, seen = 0;
  while (uint32_t more = needed & ~seen) {
    if (more & ~waiting) return;
    for (uint32_t l = more; l; l &= l - 1) needed |= lacking[std::countr_zero(l)];
    seen |= more;
  }
  int lane = std::countr_zero(missing);
  fault("missing-lane",
        who() + "; lane " + std::to_string(lane) + " waits at " +
            location(*program, program->code[lane_pc[lane]]),
        lane);
}

// The lanes wait; the other ones of this instruction repeat it, or what else of the warp can runs.
void Warp::hold(uint32_t lanes) {
  for (uint32_t l = mask; l; l &= l - 1) {
    uint32_t lane = static_cast<uint32_t>(std::countr_zero(l));
    lane_pc[lane] = active >> lane & 1 ? pc : pc + 1;
  }
  stalled |= lanes;
  gathering |= lanes;
  regrouped = true;
  if (uint32_t rest = active & ~lanes) {
    mask = rest;
    join = ~0u;
    for (uint32_t l = live & ~mask; l; l &= l - 1) {
      uint32_t at = lane_pc[std::countr_zero(l)];
      if (at > pc) join = std::min(join, at);
    }
  } else if (live & ~stalled) {
    regroup();
  } else {
    wait = Wait::poll;
    wait_progress = m->progress;
  }
}

bool Warp::gather(uint32_t required, const char* what) {
  uint32_t missing = required & ~active;
  if (!missing) return true;
  check_missing(active, missing, what);
  hold(active);
  return false;
}

bool Warp::gather_sets(const uint32_t* masks, const char* what) {
  uint32_t complete = active;
  for (uint32_t rest = active, set; rest; rest &= ~set) {
    uint32_t members = masks[std::countr_zero(rest)];
    set = 0;
    for (uint32_t l = rest; l; l &= l - 1)
      if (masks[std::countr_zero(l)] == members) set |= l & (0 - l);
    if (set & ~members)
      fault("missing-lane", "the lane is not in its own member mask " + hex(members),
            std::countr_zero(set & ~members));
    uint32_t missing = members & ~dead & ~set;
    if (!missing) continue;
    if (uint32_t others = missing & active) {
      int lane = std::countr_zero(others);
      fault("missing-lane",
            std::string(what) + ": lane " + std::to_string(std::countr_zero(set)) +
                " passes the member mask " + hex(members) + ", but lane " + std::to_string(lane) +
                ", which it names, passes " + hex(masks[lane]) +
                "; lanes that take part together pass the same mask",
            lane);
    }
    check_missing(set, missing, what);
    complete &= ~set;
  }
  if (complete == active) return true;
  hold(active & ~complete);
  return false;
}

}  // namespace l4k::emu
