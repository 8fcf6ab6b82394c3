// Branches, calls, exits; printf and assert.
#include <bit>
#include <cstdio>
#include <cstring>

#include "machine/core/memory.h"
#include "machine/isa/families.h"
#include "machine/isa/lanes.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

void branch(Warp& w, const Inst& in) { w.branch(w.active, in.target); }

void branch_indexed(Warp& w, const Inst& in) {  // lanes may go to different places
  const u32* index = w.reg<u32>(in.s[0]);
  u32 first = index[std::countr_zero(w.active)];
  bool uniform = w.active == w.mask && w.mask == w.live;
  for (u32 l = w.mask; l; l &= l - 1) {
    int i = std::countr_zero(l);
    if (!(w.active >> i & 1)) {
      w.lane_pc[i] = w.pc + 1;
      continue;
    }
    if (index[i] >= in.branch_targets.size())
      fault("bad-branch-index", "brx.idx past its table", i);
    w.lane_pc[i] = in.branch_targets[index[i]];
    uniform &= index[i] == first;
  }
  if (uniform) {
    w.next = in.branch_targets[first];
    return;
  }
  w.regroup();
  w.regrouped = true;
}

void leave(Warp& w, const Inst&) { w.exit_lanes(w.active); }

// Copies parameters between two frames, for some lanes.
void copy_params(Frame& to, const std::vector<const Variable*>& into, Frame& from,
                 const std::vector<const Variable*>& out_of, u32 lanes) {
  for (size_t k = 0; k < into.size() && k < out_of.size(); ++k)
    for (u32 l = lanes; l; l &= l - 1) {
      u64 i = static_cast<u64>(std::countr_zero(l));
      std::memcpy(to.params.data() + i * to.program->ptx->param_bytes + into[k]->address,
                  from.params.data() + i * from.program->ptx->param_bytes + out_of[k]->address,
                  std::min(into[k]->bytes, out_of[k]->bytes));
      to.undefined_params.copy(lane_byte(static_cast<int>(i), into[k]->address),
                               from.undefined_params,
                               lane_byte(static_cast<int>(i), out_of[k]->address),
                               std::min(into[k]->bytes, out_of[k]->bytes));
    }
}
std::vector<const Variable*> variables(const PtxOperand& list) {
  std::vector<const Variable*> v;
  for (const auto& p : list.parts) v.push_back(p.variable);
  return v;
}
std::vector<const Variable*> constant(const std::vector<Variable*>& list) {
  return {list.begin(), list.end()};
}

// Where the lists of arguments and results are among the operands, if there are any.
struct Call {
  const PtxOperand *arguments, *results;
};

void call_function(Warp& w, const Inst& in, const Program* function, u32 lanes) {
  Frame& caller = *w.frames.back();
  if (caller.params.empty()) caller.params.resize(caller.program->ptx->param_bytes * 32);
  w.push_frame(function, lanes);
  Frame& callee = *w.frames.back();
  callee.call = &in;
  if (const auto* list = in.modifiers.as<Call>().arguments)
    copy_params(callee, constant(function->ptx->params), caller, variables(*list), lanes);
}
void call(Warp& w, const Inst& in) { call_function(w, in, in.callee, w.active); }

// The bytes of parameters, for comparison.
template <typename List>
std::string sizes(const List& list) {
  std::string s;
  for (const Variable* v : list) s += (s.empty() ? "" : ", ") + std::to_string(v->bytes);
  return "(" + s + ")";
}
const Program* pointed_at(Warp& w, const Inst& in, u64 address, int lane) {
  const Image& image = *w.program->image;
  auto it = image.function_names.find(address);
  const Program* f = it == image.function_names.end() ? nullptr : image.find(it->second);
  if (!f || f->ptx->entry)
    fault_at("bad-call",
             it == image.function_names.end()
                 ? "a call through a pointer that holds no function of this module"
                 : "a call of '" + it->second + "', which this module does not define",
             lane, address);
  auto check = [&](const char* what, const PtxOperand* list, const std::vector<Variable*>& has) {
    std::string passed = list ? sizes(variables(*list)) : "()", expected = sizes(has);
    if (passed != expected)
      fault_at("bad-call",
               "'" + it->second + "' has " + what + " of " + expected +
                   " bytes, but the call through a pointer passes " + passed,
               lane, address);
  };
  const auto& m = in.modifiers.as<Call>();
  check("parameters", m.arguments, f->ptx->params);
  check("results", m.results, f->ptx->results);
  return f;
}
// Lanes that hold the first one's pointer call; the others repeat the instruction afterwards.
void call_pointer(Warp& w, const Inst& in) {
  w.use(in.s[0], w.active);
  const u64* pointer = w.reg<u64>(in.s[0]);
  int first = std::countr_zero(w.active);
  u32 lanes = 0, later = 0;
  for (u32 l = w.active; l; l &= l - 1) {
    bool same = pointer[std::countr_zero(l)] == pointer[first];
    (same ? lanes : later) |= l & (0 - l);
  }
  u32 pc = w.pc;
  call_function(w, in, pointed_at(w, in, pointer[first], first), lanes);
  for (u32 l = later; l; l &= l - 1) w.frames.back()->lane_pc[std::countr_zero(l)] = pc;
}

void give_back(Warp& w, const Inst&) {
  if (w.frames.size() == 1) return w.exit_lanes(w.active);
  Frame& callee = *w.frames.back();
  Frame& caller = *w.frames[w.frames.size() - 2];
  const Inst& in = *callee.call;
  if (const auto* list = in.modifiers.as<Call>().results)
    copy_params(caller, variables(*list), callee, constant(callee.program->ptx->results), w.active);
  w.pop_frame(w.active);
}

u64 argument(Warp& w, const Inst& in, size_t index, int lane) {
  Frame& f = *w.frames.back();
  const auto& parts = in.modifiers.as<Call>().arguments->parts;
  if (index >= parts.size() || !parts[index].variable) fault("bad-call", "too few arguments", lane);
  u64 v = 0;
  std::memcpy(&v,
              f.params.data() + static_cast<u64>(lane) * w.program->ptx->param_bytes +
                  parts[index].variable->address,
              std::min<u64>(8, parts[index].variable->bytes));
  return v;
}
void read_defined(Warp& w, int lane, u64 address, u32 bytes, void* out) {
  Origin from;
  if (read_memory(w, lane, Space::none, address, bytes, out, Order::coherent, &from))
    w.use_undefined(from, "printf or assert is given", lane);
}
std::string read_string(Warp& w, int lane, u64 address) {
  std::string s;
  for (;; ++address) {
    char c;
    read_defined(w, lane, address, 1, &c);
    if (!c || s.size() > 4096) return s;
    s += c;
  }
}

void print(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    std::string format = read_string(w, lane, argument(w, in, 0, lane)), out;
    u64 at = argument(w, in, 1, lane);
    for (size_t i = 0; i < format.size(); ++i) {
      if (format[i] != '%' || format.compare(i, 2, "%%") == 0) {
        out += format[i];
        i += format[i] == '%';
        continue;
      }
      size_t end = format.find_first_of("diouxXcsfFeEgGaAp", i + 1);
      if (end == std::string::npos) break;
      std::string spec = format.substr(i, end - i + 1);
      char what = spec.back(), text[512];
      bool wide = spec.find('l') != std::string::npos || std::strchr("sfFeEgGaAp", what);
      u32 bytes = wide ? 8 : 4;
      at = (at + bytes - 1) / bytes * bytes;
      u64 v = 0;
      read_defined(w, lane, at, bytes, &v);
      at += bytes;
      if (what == 's')
        std::snprintf(text, sizeof text, spec.c_str(), read_string(w, lane, v).c_str());
      else if (std::strchr("fFeEgGaA", what))
        std::snprintf(text, sizeof text, spec.c_str(), std::bit_cast<double>(v));
      else if (wide) std::snprintf(text, sizeof text, spec.c_str(), v);
      else std::snprintf(text, sizeof text, spec.c_str(), static_cast<u32>(v));
      out += text;
      i = end;
    }
    std::fputs(out.c_str(), stdout);
  }
  std::fflush(stdout);
}

void assert_failed(Warp& w, const Inst& in) {
  int lane = std::countr_zero(w.active);
  fault("assertion",
        "assertion '" + read_string(w, lane, argument(w, in, 0, lane)) + "' failed at " +
            read_string(w, lane, argument(w, in, 1, lane)) + ":" +
            std::to_string(argument(w, in, 2, lane)),
        lane);
}

void trap(Warp& w, const Inst&) {
  const Launch& l = *w.cta->cluster->launch;
  // cooperative_groups checks for the workspace itself, and traps without a word.
  bool synchronises = l.program->uses_grid_workspace && l.grid_workspace.empty();
  fault("trap",
        std::string("the kernel executed trap") +
            (synchronises
                 ? "; it uses this_grid() of cooperative groups, whose sync() needs a launch "
                   "by cudaLaunchCooperativeKernel or with cudaLaunchAttributeCooperative"
                 : ""),
        std::countr_zero(w.active));
}

// Local memory that a function allocates while it runs: for all lanes as much as the greediest asks
// for. It is free again when the function returns, or all lanes go back to an earlier top.
void allocate(Warp& w, const Inst& in) {
  const u32 align = static_cast<u32>(in.imm);
  u64 most = 0, at = (w.local_top + align - 1) / align * align;
  for (u32 l = w.active; l; l &= l - 1)
    most = std::max(most, get_lane(w, in.s[0], in.base_bytes, std::countr_zero(l)));
  if (most > (u64{1} << 24))
    fault("stack-overflow", "alloca of " + std::to_string(most) + " bytes");
  w.local_top = at + most;
  for (u32 l = w.active; l; l &= l - 1)
    put_lane(w, in.d[0], in.base_bytes, std::countr_zero(l), at);
}
void save_stack(Warp& w, const Inst& in) {
  for (u32 l = w.active; l; l &= l - 1)
    put_lane(w, in.d[0], in.base_bytes, std::countr_zero(l), w.local_top);
}
void restore_stack(Warp& w, const Inst& in) {
  u64 top = get_lane(w, in.s[0], in.base_bytes, std::countr_zero(w.active));
  const Frame& f = *w.frames.back();
  bool own = top >= f.local_base + f.program->ptx->local_bytes && top <= w.local_top;
  if (!own) fault("bad-operand", "stackrestore of what stacksave did not return");
  if (w.active == w.live) w.local_top = top;
}
bool decode_stack(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  Type t = d.take_type();
  d.finish();
  out.base_bytes = static_cast<uint8_t>(t.bits / 8);
  if (op == "stackrestore") d.add_source(0, t.bits);
  else d.add_target(0, t.bits);
  if (op == "alloca") {
    d.add_source(1, t.bits);
    out.imm = d.operands() > 2 ? static_cast<int64_t>(d.literal(2)) : 16;
    if (out.imm < 16) out.imm = 16;
  }
  out.run = op == "alloca" ? allocate : op == "stacksave" ? save_stack : restore_stack;
  return true;
}

void sleep(Warp& w, const Inst&) {  // lets everybody else run
  ++w.pc;
  for (u32 l = w.mask; l; l &= l - 1) w.lane_pc[std::countr_zero(l)] = w.pc;
  if (w.mask == w.live) {
    w.park(Wait::poll);
    w.wait_progress = ~u64{0};  // wakes at the next opportunity
  } else {
    w.regroup();
    w.regrouped = true;
  }
}
void nothing(Warp&, const Inst&) {}

bool decode_call(Decoder& d) {
  Inst& out = *d.out;
  d.take("uni");
  d.finish();
  auto list_at = [&](size_t i) {
    bool list = i < d.operands() && d.operand(i).kind == PtxOperand::Kind::list;
    return list ? &d.operand(i) : nullptr;
  };
  Call m{};
  m.results = list_at(0);
  size_t at = m.results ? 1 : 0;
  const PtxOperand& f = d.operand(at);
  bool pointer = f.kind == PtxOperand::Kind::reg;
  if (pointer) d.add_source(at, 64);
  else if (f.kind != PtxOperand::Kind::symbol) d.unsupported("callee");
  m.arguments = list_at(at + 1);
  for (const PtxOperand* list : {m.arguments, m.results})
    if (list)
      for (const auto& p : list->parts)
        if (p.kind != PtxOperand::Kind::symbol || !p.variable)
          d.unsupported("argument that is no .param variable");
  out.modifiers.store(m);
  out.checks_itself = true;
  if (pointer) {
    out.run = call_pointer;
    d.program->communicates = true;  // what it calls may
    return true;
  }
  if (f.name == "vprintf" && m.arguments) {
    out.run = print;
    d.program->communicates = true;
    return true;
  }
  if (f.name == "__assertfail" && m.arguments) {
    out.run = assert_failed;
    return true;
  }
  out.callee = d.image->find(f.name);
  if (!out.callee) d.unsupported("call of '" + f.name + "', which this module does not define");
  if (out.callee->ptx->entry) d.unsupported("call of a kernel");
  out.run = call;
  return true;
}

}  // namespace

bool decode_control(Decoder& d) {
  const std::string& op = d.in->opcode;
  Inst& out = *d.out;
  if (op == "bra") {
    d.take("uni");
    d.finish();
    const PtxOperand& o = d.operand(0);
    if (o.target < 0) throw PtxError(d.in->line, "label '" + o.name + "' is not defined here");
    out.target = static_cast<u32>(o.target);
    out.run = branch;
    return true;
  }
  if (op == "brx") {
    d.take("idx"), d.take("uni");
    d.finish();
    d.add_source(0, 32);
    auto it = d.program->ptx->branch_targets.find(d.operand(1).name);
    if (it == d.program->ptx->branch_targets.end())
      throw PtxError(d.in->line, "branch table '" + d.operand(1).name + "' is not defined");
    for (const auto& t : it->second) out.branch_targets.push_back(static_cast<u32>(std::stoul(t)));
    out.run = branch_indexed;
    return true;
  }
  if (op == "call") return decode_call(d);
  if (op == "alloca" || op == "stacksave" || op == "stackrestore") return decode_stack(d);
  if (op == "ret" || op == "exit") {
    d.take("uni");
    d.finish();
    out.checks_itself = true;
    out.run = op == "ret" ? give_back : leave;
    return true;
  }
  if (op == "trap") {
    out.run = trap;
    return true;
  }
  if (op == "nanosleep") {
    d.take("u32");
    d.finish();
    d.add_source(0, 32);
    out.run = sleep;
    return true;
  }
  if (op == "pmevent" || op == "brkpt") {
    out.run = nothing;
    return true;
  }
  return false;
}

}  // namespace l4k::emu
