#include "machine/image.h"

#include <algorithm>
#include <cstring>

#include "machine/async/families.h"
#include "machine/core/machine.h"
#include "machine/isa/families.h"

namespace l4k::emu {
namespace {

uint64_t round_up(uint64_t v, uint64_t to) { return (v + to - 1) / to * to; }

void place_variables(PtxModule& module) {
  GlobalMemory& memory = Machine::get().memory;
  for (auto& v : module.variables) {
    if (v->space == Space::shared || v->external) continue;
    if (v->bytes > (uint64_t{1} << 30))
      throw PtxError(0, "variable '" + v->name + "' is larger than 1 GiB");
    v->address = reinterpret_cast<uint64_t>(
        memory.allocate(std::max<uint64_t>(v->bytes, 1), Owner::variable));
    auto* p = reinterpret_cast<uint8_t*>(v->address);
    std::memset(p, 0, v->bytes);
    if (!v->init.empty()) std::memcpy(p, v->init.data(), v->init.size());
  }
  for (auto& v : module.variables)
    for (const auto& ref : v->references) {
      const Variable* target = module.find_variable(ref.symbol);
      if (!target || !target->address)
        throw PtxError(
            0, "initialiser of '" + v->name + "' names '" + ref.symbol + "', which has no address");
      if (ref.offset + 8 > v->bytes)
        throw PtxError(0, "initialiser of '" + v->name + "' is too long");
      uint64_t a = target->address + static_cast<uint64_t>(ref.addend);
      std::memcpy(reinterpret_cast<uint8_t*>(v->address) + ref.offset, &a, 8);
    }
}

// Shared variables of the module and of device functions come first, then each kernel's own.
void place_shared(PtxModule& module, std::map<const PtxFunction*, uint32_t>* ends) {
  uint64_t common = 1024;
  auto place = [](uint64_t* end, Variable& v) {
    v.address = round_up(*end, v.align);
    *end = v.address + v.bytes;
  };
  for (auto& v : module.variables)
    if (v->space == Space::shared && !v->external) place(&common, *v);
  for (auto& [name, f] : module.functions)
    if (!f->entry)
      for (auto& v : f->variables)
        if (v->space == Space::shared) place(&common, *v);
  for (auto& [name, f] : module.functions) {
    uint64_t end = common;
    if (f->entry)
      for (auto& v : f->variables)
        if (v->space == Space::shared) place(&end, *v);
    if (end > 16 * 1024 * 1024) throw PtxError(0, "'" + name + "' declares too much shared memory");
    (*ends)[f.get()] = static_cast<uint32_t>(end);
  }
}

void layout_registers(Program& p) {
  uint32_t at = 0;
  for (const auto& r : p.ptx->registers) {
    p.offset.push_back(at);
    at += register_bytes(r.bits) * 32;
  }
  p.register_bytes = at + 64;
  p.pool.reserve(1 << 16);
}

void not_implemented(Warp&, const Inst& in) { fault("not-implemented", in.note); }
void fell_off(Warp&, const Inst&) { fault("trap", "execution ran past the end of the function"); }

bool decode_any(Decoder& d) {
  static constexpr bool (*kDecoders[])(Decoder&) = {
      decode_move,        decode_memory,  decode_control, decode_mbarrier,  decode_bulk,
      decode_store_async, decode_copy,    decode_wgmma,   decode_tensormap, decode_mma,
      decode_warp,        decode_barrier, decode_atomic,  decode_compare,   decode_convert,
      decode_bits,        decode_integer, decode_float};
  return std::any_of(std::begin(kDecoders), std::end(kDecoders), [&](auto* f) { return f(d); });
}

void decode(Program& p, const Image& image) {
  const PtxFunction& f = *p.ptx;
  p.code.resize(f.code.size() + 1);
  for (size_t i = 0; i < f.code.size(); ++i) {
    const PtxInstruction& in = f.code[i];
    Inst& out = p.code[i];
    try {
      Decoder d(&p, &image, &in, &out);
      if (!decode_any(d)) throw NotImplemented{in.text()};
    } catch (const NotImplemented& n) {
      out = Inst{};
      out.checks_itself = true;
      out.run = not_implemented;
      out.note = "instruction " + n.what + " is not implemented by the emulator";
    }
    out.ptx = &in;
    if (in.predicate > 0) {
      out.predicate = {static_cast<uint32_t>(in.predicate),
                       p.offset[static_cast<size_t>(in.predicate)]};
      out.predicate_negated = in.predicate_negated;
    }
    if (in.opcode == "bra" && out.target > f.code.size())
      throw PtxError(in.line, "branch out of range");
  }
  p.code.back().run = fell_off;
  p.code.back().checks_itself = true;
  p.code.back().ptx = f.code.empty() ? nullptr : &f.code.back();
}

// A function communicates if one that it calls does.
void find_communicating(const Image& image) {
  auto calls_one = [](const Program& p) {
    return std::any_of(p.code.begin(), p.code.end(),
                       [](const Inst& in) { return in.callee && in.callee->communicates; });
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (auto& [name, p] : image.programs)
      if (!p->communicates && calls_one(*p)) p->communicates = changed = true;
  }
}

}  // namespace

std::unique_ptr<Image> load_image(const std::string& text) {
  auto image = std::make_unique<Image>();
  image->module = parse_ptx(text);
  PtxModule& module = *image->module;
  place_variables(module);
  std::map<const PtxFunction*, uint32_t> ends;
  place_shared(module, &ends);
  uint32_t dynamic_align = 16;
  for (const auto& v : module.variables)
    if (v->space == Space::shared && v->external) dynamic_align = std::max(dynamic_align, v->align);
  for (auto& [name, f] : module.functions) {
    if (!f->defined) continue;
    auto p = std::make_unique<Program>();
    p->ptx = f.get();
    p->module = &module;
    p->static_shared_end = ends[f.get()];
    p->dynamic_align = dynamic_align;
    layout_registers(*p);
    image->programs[name] = std::move(p);
  }
  for (auto& [name, p] : image->programs) decode(*p, *image);
  find_communicating(*image);
  return image;
}

}  // namespace l4k::emu
