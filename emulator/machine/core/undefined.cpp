// Undefined data: registers and memory carry it along, and what depends on it is reported.
#include <bit>
#include <cstring>
#include <utility>

#include "machine/core/machine.h"

namespace l4k::emu {
namespace {

// Lanes in which a register of this many bits holds `value`.
uint32_t lanes_with(Warp& w, const Reg& r, uint32_t bits, uint64_t value) {
  if (bits == 1) return value ? *w.reg<uint32_t>(r) : ~*w.reg<uint32_t>(r);
  uint32_t bytes = register_bytes(bits), lanes = 0;
  for (uint32_t i = 0; i < 32; ++i)
    lanes |= uint32_t{!std::memcmp(w.reg<uint8_t>(r) + i * bytes, &value, bytes)} << i;
  return lanes;
}

// Lanes in which a selection takes its first source.
uint32_t chosen_first(Warp& w, const Inst& in) {
  const Reg& by = in.s[in.sources - 1];
  uint32_t first = 0;
  if (in.flow == Flow::choice) return *w.reg<uint32_t>(by);
  for (uint32_t i = 0; i < 32; ++i)
    first |= uint32_t{in.flow == Flow::sign ? w.reg<int32_t>(by)[i] >= 0 : w.reg<float>(by)[i] >= 0}
             << i;
  return first;
}

}  // namespace

// Lanes whose result depends on an undefined source, of those that have one.
uint32_t Warp::depends(const Inst& in, uint32_t bad) {
  auto undefined_in = [&](int i) { return state[in.s[i].index].bad; };
  int last = in.sources - 1;
  if (in.flow == Flow::any) return bad;
  if (in.flow <= Flow::real_sign) {
    uint32_t first = chosen_first(*this, in);
    return bad & (undefined_in(last) | (first & undefined_in(0)) | (~first & undefined_in(1)));
  }
  bool negated = in.flow == Flow::and_not || in.flow == Flow::or_not;
  bool disjunction = in.flow == Flow::disjunction || in.flow == Flow::or_not;
  uint64_t deciding = disjunction ? ~uint64_t{0} : 0;
  uint32_t bits = program->ptx->registers[in.d[0].index].bits;
  uint32_t decided =
      lanes_with(*this, in.s[last], bits, negated ? ~deciding : deciding) & ~undefined_in(last);
  if (in.sources == 2)
    return bad & ~decided & ~(lanes_with(*this, in.s[0], bits, deciding) & ~undefined_in(0));
  // A comparison that is combined with a predicate: the comparison alone may decide.
  if (in.targets == 1 && undefined_in(last)) {
    uint32_t &p = *reg<uint32_t>(in.s[last]), saved = p;
    p = negated == disjunction ? kAllLanes : 0;
    in.run(*this, in);
    uint32_t compared = *reg<uint32_t>(in.d[0]);
    p = saved;
    decided |= (disjunction ? compared : ~compared) & ~(undefined_in(0) | undefined_in(1));
  }
  return bad & ~decided;
}

void Warp::execute_undefined(const Inst& in, uint32_t lanes) {
  uint32_t bad = 0;
  Origin from;
  auto look = [&](const Reg& s, bool passes) {
    uint32_t b = bad_source(s, lanes, passes);
    if (b && !from) from = origin(s);
    bad |= b;
  };
  for (int i = 0; i < in.sources; ++i) look(in.s[i], in.propagates);
  if (in.list_use == ListUse::read)
    for (const Reg& s : in.list) look(s, in.propagates || in.carries);
  struct Cleared {
    uint32_t& lanes;
    ~Cleared() { lanes = 0; }
  } cleared{undefined};
  undefined = depends(in, bad);
  in.run(*this, in);
  if (regrouped) return;
  auto write = [&](const Reg& d) {
    written(d, lanes, undefined & lanes);
    if (undefined) set_origin(d, from);
  };
  for (int i = 0; i < in.targets; ++i) write(in.d[i]);
  if (in.list_use == ListUse::written)
    for (const Reg& d : in.list) write(d);
}

uint32_t Warp::bad_source(const Reg& s, uint32_t lanes, bool propagates) {
  const RegState& r = state[s.index];
  uint32_t bad = r.bad & lanes;
  if (!bad) return 0;
  int lane = std::countr_zero(bad);
  if (r.in_flight())
    fault("register-in-flight",
          "register " + register_name(s) +
              " is an accumulator of a wgmma that has not been waited for",
          lane);
  if (propagates) return bad;
  std::string what = "register " + register_name(s) + " is used and ";
  if (Origin from = origin(s)) {
    use_undefined(from, what + "holds", lane);
  } else {
    what += "was never written";
    if (m->tally.left_out) what += ", or is the result of an instruction that was left out";
    complain("uninitialised-register", what, lane);
  }
  return 0;
}

void Warp::use_undefined(const Origin& from, const std::string& what, int lane) {
  std::string where = " at " + location(*from.program, *from.read);
  if (from.address == Origin::kRegister)
    return complain("uninitialised-register",
                    what + " a register that nobody wrote, stored" + where, lane);
  if (auto it = cta->undefined_reads.find(from.read); it != cta->undefined_reads.end())
    it->second.used = true;
  complain_at("uninitialised-shared-read", what + " shared memory that nobody wrote, read" + where,
              lane, from.address);
}

Origin Warp::origin(const Reg& r) const {
  const auto& origins = frames.back()->origins;
  auto it = origins.find(r.index);
  return it == origins.end() ? Origin{} : it->second;
}

void Warp::set_origin(const Reg& r, const Origin& from) {
  if (from) frames.back()->origins[r.index] = from;
  else frames.back()->origins.erase(r.index);
}

Origin Warp::read_undefined(const SharedMemory& shared, uint32_t address, uint32_t bytes,
                            int lane) {
  if (Origin from = shared.origin(address, bytes)) return from;
  while (shared.defined(address)) ++address;
  Origin from{program, &current(), address};
  cta->undefined_reads.try_emplace(from.read, UndefinedRead{from, index, lane, false});
  return from;
}

void Warp::load_undefined(const Inst& in, uint32_t element, int lane, uint32_t mask,
                          const Origin& from) {
  for (size_t k = 0; k < in.list.size(); ++k)
    if (mask >> (k * element) & ((1u << element) - 1))
      undefined_results.push_back({in.list[k], 1u << lane, from});
}

void Warp::settle_loads() {
  for (const UndefinedResult& r : undefined_results) {
    state[r.to.index].bad |= r.lanes;
    set_origin(r.to, r.from);
  }
  undefined_results.clear();
}

}  // namespace l4k::emu
