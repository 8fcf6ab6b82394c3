#include "machine/shared_layout.h"

#include <algorithm>

namespace l4k::emu {
namespace {

uint64_t round_up(uint64_t v, uint64_t to) { return (v + to - 1) / to * to; }

bool overlap(const Variable& a, const Variable& b) {
  return a.address < b.address + b.bytes && b.address < a.address + a.bytes;
}

}  // namespace

void SharedLayout::Uses::add(const Uses& other) {
  shared.insert(other.shared.begin(), other.shared.end());
  functions.insert(other.functions.begin(), other.functions.end());
  calls_pointers |= other.calls_pointers;
  group_scratch |= other.group_scratch;
  grid_workspace |= other.grid_workspace;
}

SharedLayout::SharedLayout(PtxModule& module) : module_(module) {
  auto take_address = [&](const std::string& name) {
    if (auto it = module_.functions.find(name); it != module_.functions.end())
      address_taken_.insert(it->second.get());
  };
  for (const auto& v : module_.variables)
    for (const auto& reference : v->references) take_address(reference.symbol);
  for (const auto& [name, f] : module_.functions) uses_[f.get()] = uses_of(*f);
  for (const auto& [name, f] : module_.functions) {
    if (!f->entry) continue;
    Uses all = uses_[f.get()];
    close(&all);
    for (const PtxFunction* g : all.functions)
      if (!g->entry) common_.insert(uses_[g].shared.begin(), uses_[g].shared.end());
    reachable_[f.get()] = std::move(all);
  }
  place_common();
}

void SharedLayout::note(const PtxOperand& o, bool is_callee, Uses* uses) {
  for (const auto& part : o.parts) note(part, false, uses);
  if (o.kind == PtxOperand::Kind::reg) {
    uses->group_scratch |= o.reg == kReservedSmem1;
    uses->grid_workspace |= o.reg == kEnvReg1;
    uses->calls_pointers |= is_callee;
  }
  if (o.kind != PtxOperand::Kind::symbol) return;
  if (o.variable) {
    if (o.variable->space == Space::shared && !o.variable->external)
      uses->shared.insert(const_cast<Variable*>(o.variable));  // module_ owns it
    return;
  }
  auto it = o.target < 0 ? module_.functions.find(o.name) : module_.functions.end();
  if (it == module_.functions.end()) return;
  uses->functions.insert(it->second.get());
  if (!is_callee) address_taken_.insert(it->second.get());
}

SharedLayout::Uses SharedLayout::uses_of(const PtxFunction& f) {
  Uses uses;
  for (const auto& in : f.code) {
    bool call = in.opcode == "call";
    for (size_t i = 0; i < in.operands.size(); ++i) {
      // The callee is the first operand that is no list of results.
      bool callee = call && i == (in.operands[0].kind == PtxOperand::Kind::list ? 1u : 0u);
      note(in.operands[i], callee, &uses);
    }
  }
  return uses;
}

// Adds what the functions use, until there is nothing more.
void SharedLayout::close(Uses* uses) const {
  std::set<const PtxFunction*> done;
  for (bool more = true; more;) {
    more = false;
    if (uses->calls_pointers) uses->functions.insert(address_taken_.begin(), address_taken_.end());
    for (const PtxFunction* f : std::set<const PtxFunction*>(uses->functions))
      if (done.insert(f).second) uses->add(uses_.at(f)), more = true;
  }
}

// Variables of functions: two that one kernel uses do not overlap. Those of many kernels come first,
// so that no kernel has gaps where others keep theirs.
void SharedLayout::place_common() {
  std::map<Variable*, std::vector<const Uses*>> users;
  for (const auto& [kernel, uses] : reachable_)
    for (Variable* v : uses.shared)
      if (common_.count(v)) users[v].push_back(&uses);
  std::vector<Variable*> order;
  for (const auto& v : module_.variables)
    if (users.count(v.get())) order.push_back(v.get());
  for (const auto& [name, f] : module_.functions)
    for (const auto& v : f->variables)
      if (users.count(v.get())) order.push_back(v.get());
  std::stable_sort(order.begin(), order.end(),
                   [&](Variable* a, Variable* b) { return users[a].size() > users[b].size(); });
  std::set<Variable*> placed;
  for (Variable* v : order) {
    v->address = round_up(kReservedShared, v->align);
    for (bool moved = true; moved;) {
      moved = false;
      for (const Uses* uses : users[v])
        for (Variable* other : uses->shared)
          if (placed.count(other) && overlap(*v, *other)) {
            v->address = round_up(other->address + other->bytes, v->align);
            moved = true;
          }
    }
    placed.insert(v);
  }
}

void SharedLayout::place(Program& kernel) {
  const Uses& uses = reachable_.at(kernel.ptx);
  uint64_t end = kReservedShared;
  for (Variable* v : uses.shared)
    if (common_.count(v)) end = std::max(end, v->address + v->bytes);
  auto add = [&](Variable* v) {
    if (!uses.shared.count(v) || common_.count(v)) return;
    v->address = round_up(end, v->align);
    end = v->address + v->bytes;
  };
  for (const auto& v : module_.variables) add(v.get());
  for (const auto& v : kernel.ptx->variables) add(v.get());
  if (end > 16 * 1024 * 1024)
    throw PtxError(0, "'" + kernel.ptx->name + "' declares too much shared memory");
  kernel.static_shared_end = static_cast<uint32_t>(end);
  kernel.uses_group_scratch = uses.group_scratch;
  kernel.uses_grid_workspace = uses.grid_workspace;
}

}  // namespace l4k::emu
