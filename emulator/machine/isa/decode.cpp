#include "machine/isa/decode.h"

#include <cstring>
#include <utility>

#include "machine/core/state.h"

namespace l4k::emu {
namespace {

std::optional<Type> type_named(const std::string& name) {
  static constexpr struct {
    const char* name;
    Kind kind;
    uint32_t bits;
  } kTypes[] = {{"pred", Kind::pred, 1},           {"bf16", Kind::bf16, 16},
                {"bf16x2", Kind::packed_bf16, 32}, {"f16x2", Kind::packed_f16, 32},
                {"tf32", Kind::real, 32},          {"e4m3", Kind::bits, 8},
                {"e5m2", Kind::bits, 8},           {"e4m3x2", Kind::bits, 16},
                {"e5m2x2", Kind::bits, 16}};
  for (const auto& t : kTypes)
    if (name == t.name) return Type{t.kind, t.bits, name};
  if (name.size() < 2 || !std::isdigit(static_cast<unsigned char>(name[1]))) return std::nullopt;
  char* end = nullptr;
  auto bits = static_cast<uint32_t>(std::strtoul(name.c_str() + 1, &end, 10));
  if (*end) return std::nullopt;
  switch (name[0]) {
    case 'b':
      return Type{Kind::bits, bits, name};
    case 'u':
      return Type{Kind::uint, bits, name};
    case 's':
      return Type{Kind::sint, bits, name};
    case 'f':
      return Type{Kind::real, bits, name};
    default:
      return std::nullopt;
  }
}

}  // namespace

bool Decoder::take(const char* mod) {
  for (auto& m : left_)
    if (m == mod) {
      m.clear();
      return true;
    }
  return false;
}

int Decoder::take_one(const char* names) {
  std::string all = names;
  int index = 0;
  for (size_t at = 0; at < all.size(); ++index) {
    size_t end = std::min(all.find(' ', at), all.size());
    if (take(all.substr(at, end - at).c_str())) return index;
    at = end + 1;
  }
  return -1;
}

std::optional<Type> Decoder::try_type() {
  for (auto& m : left_)
    if (auto t = type_named(m)) {
      m.clear();
      return t;
    }
  return std::nullopt;
}

Type Decoder::peek_type() const {
  for (const auto& m : left_)
    if (auto t = type_named(m)) return *t;
  return {};
}

Type Decoder::take_type() {
  if (auto t = try_type()) return *t;
  unsupported("no type");
}

void Decoder::finish() {
  for (const auto& m : left_)
    if (!m.empty()) unsupported("modifier ." + m);
}

void Decoder::unsupported(const std::string& what) const {
  throw NotImplemented{in->text() + (what.empty() ? "" : " (" + what + ")")};
}

const PtxOperand& Decoder::operand(size_t i) const {
  if (i >= in->operands.size())
    throw PtxError(in->line, in->text() + " needs at least " + std::to_string(i + 1) + " operands");
  return in->operands[i];
}

uint32_t Decoder::bits_of(const PtxOperand& o) const {
  return o.kind == PtxOperand::Kind::reg ? program->ptx->registers[static_cast<size_t>(o.reg)].bits
                                         : 0;
}

Reg Decoder::constant(const void* value, uint32_t bytes) {
  auto& pool = program->pool;
  // Equal literals share their place: look at the last few.
  for (size_t at = pool.size(), tries = 0; tries < 16 && at >= 512; ++tries) {
    at -= 512;
    if (std::memcmp(pool.data() + at, value, bytes) == 0 && pool[at + 511] == bytes)
      return {0, static_cast<uint32_t>(at)};
  }
  size_t at = pool.size();
  pool.resize(at + 512);
  for (uint32_t i = 0; i < 32; ++i) std::memcpy(pool.data() + at + i * bytes, value, bytes);
  if (bytes < 16) pool[at + 511] = static_cast<uint8_t>(bytes);
  return {0, static_cast<uint32_t>(at)};
}

void Decoder::check_width(const PtxOperand& o, uint32_t bits) const {
  uint32_t have = bits_of(o);
  if (bits && (register_bytes(have) != register_bytes(bits) || (have == 1) != (bits == 1)))
    throw PtxError(in->line, in->text() + ": register " +
                                 program->ptx->registers[static_cast<size_t>(o.reg)].name +
                                 " has " + std::to_string(have) + " bits, expected " +
                                 std::to_string(bits));
}

Reg Decoder::source(const PtxOperand& o, uint32_t bits, bool is_float) {
  switch (o.kind) {
    case PtxOperand::Kind::reg: {
      check_width(o, bits);
      if (o.negated) unsupported("negated operand");
      return {static_cast<uint32_t>(o.reg), program->offset[static_cast<size_t>(o.reg)]};
    }
    case PtxOperand::Kind::integer: {
      if (bits == 1) {
        uint32_t v = o.value ? kAllLanes : 0;
        return constant(&v, 4);
      }
      if (is_float && bits == 32 && o.value) unsupported("integer literal for a float operand");
      return constant(&o.value, register_bytes(bits));
    }
    case PtxOperand::Kind::f32: {
      if (bits == 64) {
        auto f = static_cast<uint32_t>(o.value);
        float v;
        std::memcpy(&v, &f, 4);
        double wide = v;
        return constant(&wide, 8);
      }
      return constant(&o.value, register_bytes(bits));
    }
    case PtxOperand::Kind::f64: {
      if (bits == 32) {
        double v;
        std::memcpy(&v, &o.value, 8);
        auto narrow = static_cast<float>(v);
        return constant(&narrow, 4);
      }
      return constant(&o.value, register_bytes(bits));
    }
    case PtxOperand::Kind::symbol:
      if (o.variable && !o.variable->external && o.variable->space != Space::local &&
          !(o.variable->space == Space::param && !o.variable->kernel_param)) {
        if (o.variable->space == Space::param) unsupported("parameter address as an operand");
        uint64_t v = o.variable->address + o.value;
        return constant(&v, register_bytes(bits));
      }
      throw PtxError(in->line, in->text() + ": '" + o.name + "' is not declared");
    default:
      throw PtxError(in->line, in->text() + ": unexpected kind of operand");
  }
}

Reg Decoder::target(const PtxOperand& o, uint32_t bits) {
  if (o.kind == PtxOperand::Kind::sink) return {kSpecialCount, program->offset[kSpecialCount]};
  if (o.kind != PtxOperand::Kind::reg)
    throw PtxError(in->line, in->text() + ": the destination is not a register");
  if (o.reg <= static_cast<int>(kSpecialCount))
    throw PtxError(in->line, in->text() + ": special registers are read-only");
  check_width(o, bits);
  return {static_cast<uint32_t>(o.reg), program->offset[static_cast<size_t>(o.reg)]};
}

uint64_t Decoder::literal(size_t i) const {
  const PtxOperand& o = operand(i);
  if (o.kind != PtxOperand::Kind::integer)
    unsupported("operand " + std::to_string(i) + " must be constant");
  return o.value;
}

Address Decoder::address(const PtxOperand& o, Space space) {
  if (o.kind != PtxOperand::Kind::address)
    throw PtxError(in->line, in->text() + ": expected an address");
  const PtxOperand& base = o.parts[0];
  Address a;
  a.offset = static_cast<int64_t>(o.value);
  if (base.kind == PtxOperand::Kind::reg) {
    uint32_t bits = bits_of(base);
    if (bits != 32 && bits != 64)
      throw PtxError(in->line,
                     in->text() + ": address register of " + std::to_string(bits) + " bits");
    a.bytes = bits / 8;
    a.base = source(base, bits);
    if (space == Space::param) a.bias = Bias::frame_params;
    return a;
  }
  uint64_t v = 0, zero = 0;
  if (base.kind == PtxOperand::Kind::integer) {
    v = base.value;
  } else if (base.kind == PtxOperand::Kind::symbol) {
    if (!base.variable)
      throw PtxError(in->line, in->text() + ": '" + base.name + "' is not declared");
    const Variable& var = *base.variable;
    bool dynamic = var.space == Space::shared && var.external;
    if (dynamic) a.bias = Bias::dynamic_shared;
    else if (var.space == Space::local) a.bias = Bias::local_frame;
    else if (var.space == Space::param) a.bias = Bias::frame_params;
    if (!dynamic) v = var.address;
    bool right = space == Space::none || var.space == space ||
                 (space == Space::global && var.space == Space::constant);
    if (!right)
      throw PtxError(in->line, in->text() + ": '" + var.name + "' is in another state space");
  } else {
    throw PtxError(in->line, in->text() + ": malformed address");
  }
  a.offset += static_cast<int64_t>(v);
  a.base = constant(&zero, 8);
  return a;
}

void Decoder::add_address(size_t i, Space space) {
  Address a = address(operand(i), space);
  out->imm = a.offset;
  out->bias = a.bias;
  out->base_bytes = static_cast<uint8_t>(a.bytes);
  out->s[out->sources++] = a.base;
}

bool Decoder::add_predicate(size_t i) {
  PtxOperand p = operand(i);
  bool negated = std::exchange(p.negated, false);
  out->s[out->sources++] = source(p, 1);
  return negated;
}

void Decoder::add_list(const PtxOperand& o, uint32_t bits, ListUse use, bool is_float) {
  out->list_use = use;
  auto add = [&](const PtxOperand& p) {
    out->list.push_back(use == ListUse::written ? target(p, bits) : source(p, bits, is_float));
  };
  if (o.kind != PtxOperand::Kind::group) return add(o);
  for (const auto& p : o.parts) add(p);
}

}  // namespace l4k::emu
