#include "machine/image.h"

#include <algorithm>
#include <cstring>

#include "machine/async/families.h"
#include "machine/core/machine.h"
#include "machine/isa/families.h"
#include "machine/shared_layout.h"

namespace l4k::emu {
namespace {

void place_variables(PtxModule& module, Image& image) {
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
      uint64_t a = target ? target->address : image.address_of(ref.symbol);
      if (!a)
        throw PtxError(
            0, "initialiser of '" + v->name + "' names '" + ref.symbol + "', which has no address");
      if (ref.offset + 8 > v->bytes)
        throw PtxError(0, "initialiser of '" + v->name + "' is too long");
      a += static_cast<uint64_t>(ref.addend);
      std::memcpy(reinterpret_cast<uint8_t*>(v->address) + ref.offset, &a, 8);
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
      decode_packed_integer, decode_move,      decode_memory,      decode_control,
      decode_mbarrier,       decode_bulk,      decode_store_async, decode_copy,
      decode_wgmma,          decode_tensormap, decode_mma,         decode_wmma,
      decode_warp,           decode_barrier,   decode_atomic,      decode_compare,
      decode_convert,        decode_bits,      decode_integer,     decode_float,
      decode_refused};
  return std::any_of(std::begin(kDecoders), std::end(kDecoders), [&](auto* f) { return f(d); });
}

void decode(Program& p, Image& image) {
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

uint64_t Image::address_of(const std::string& function) {
  auto it = module->functions.find(function);
  if (it == module->functions.end()) return 0;
  // No memory is there: a pointer to a function is for calls only.
  auto address = reinterpret_cast<uint64_t>(it->second.get());
  function_names[address] = function;
  return address;
}

std::unique_ptr<Image> load_image(const std::string& text) {
  auto image = std::make_unique<Image>();
  image->module = parse_ptx(text);
  PtxModule& module = *image->module;
  place_variables(module, *image);
  SharedLayout layout(module);
  uint32_t dynamic_align = 16;
  for (const auto& v : module.variables)
    if (v->space == Space::shared && v->external) dynamic_align = std::max(dynamic_align, v->align);
  for (auto& [name, f] : module.functions) {
    if (!f->defined) continue;
    auto p = std::make_unique<Program>();
    p->ptx = f.get();
    p->image = image.get();
    p->module = &module;
    p->dynamic_align = dynamic_align;
    layout_registers(*p);
    image->programs[name] = std::move(p);
  }
  for (auto& [name, p] : image->programs) {
    if (p->ptx->entry) layout.place(*p);
    decode(*p, *image);
  }
  find_communicating(*image);
  return image;
}

}  // namespace l4k::emu
