// tensormap.replace and tensormap.cp_fenceproxy: tensor maps made on the device.
#include <bit>
#include <cstring>

#include "machine/async/families.h"
#include "machine/core/memory.h"
#include "machine/isa/lanes.h"
#include "tensor/tensor_map.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;
constexpr u32 kBytes = sizeof(TensorMap);

void read_map(Warp& w, const SharedPlace& at, int lane) {
  SharedMemory& shared = *at.cta->shared;
  for (u32 i = at.offset; i < at.offset + kBytes; i += 16)
    if (shared.read(i, 16, w.actor, lane))
      w.use_undefined(w.read_undefined(shared, i, 16, lane), "a tensor map holds", lane);
}

struct Replace {
  MapField field;
  Space space;      // none: a generic address
  uint8_t bytes;    // of the value's register
  int32_t ordinal;  // of the dimension
};
void replace(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<Replace>();
  for (u32 l = w.active; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    u64 address = address_of(w, in.at[0], lane);
    Space space = m.space != Space::none ? m.space : generic_space(&address);
    check_aligned(address, 64, lane);
    void* p;
    if (space == Space::shared) {
      SharedPlace at = shared_place(w, address, lane);
      read_map(w, at, lane);
      for (u32 i = 0; i < kBytes; i += 16)
        at.cta->shared->write(at.offset + i, 16, w.actor, lane, Writer::generic);
      p = at.cta->shared->data() + at.offset;
    } else {
      p = global_pointer(w, lane, address, kBytes, true);
      note_global(w, address, kBytes, Access::write, lane);
    }
    std::string why = replace_field(p, m.field, m.ordinal, get_lane(w, in.s[0], m.bytes, lane));
    if (!why.empty()) fault_at("tensor-map", why, lane, address);
  }
}

void copy_fence(Warp& w, const Inst& in) {
  if (!w.gather(~w.dead, in.ptx->text().c_str())) return;
  int lane = std::countr_zero(w.active);
  u64 to = address_of(w, in.at[0], lane);
  SharedPlace from = shared_place(w, address_of(w, in.at[1], lane), lane);
  check_aligned(to, 64, lane);
  read_map(w, from, lane);
  uint8_t* p = global_pointer(w, lane, to, kBytes, true);
  note_global(w, to, kBytes, Access::write, lane);
  std::memcpy(p, from.cta->shared->data() + from.offset, kBytes);
  w.m->publish(*w.cta, &w);
}

}  // namespace

bool decode_tensormap(Decoder& d) {
  if (d.in->opcode != "tensormap") return false;
  Inst& out = *d.out;
  if (d.take("cp_fenceproxy")) {
    d.take("global"), d.take("shared::cta"), d.take("tensormap::generic"), d.take("release");
    d.take_one("cta cluster gpu sys"), d.take("sync"), d.take("aligned");
    d.finish();
    if (d.literal(2) != kBytes) d.unsupported("size");
    d.add_at(0, Space::global);
    d.add_at(1, Space::shared);
    out.run = copy_fence;
    return true;
  }
  if (!d.take("replace") || !d.take("tile")) d.unsupported();
  int field = d.take_one(
      "global_address rank box_dim global_dim global_stride element_stride elemtype "
      "interleave_layout swizzle_mode fill_mode");
  if (field < 0) d.unsupported("field");
  int space = d.take_one("global shared::cta");
  d.take("b1024");
  Type t = d.take_type();
  d.finish();
  Replace m{};
  m.field = static_cast<MapField>(field);
  m.space = space < 0 ? Space::none : space == 0 ? Space::global : Space::shared;
  m.bytes = static_cast<uint8_t>(register_bytes(t.bits));
  d.add_at(0, Space::none);
  size_t value = d.operands() - 1;
  if (value == 2) m.ordinal = static_cast<int32_t>(d.literal(1));
  d.add_source(value, t.bits);
  out.modifiers.store(m);
  out.run = replace;
  return true;
}

}  // namespace l4k::emu
