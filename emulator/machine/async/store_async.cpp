// st.async: a store to another CTA that reports to an mbarrier there.
#include <bit>
#include <cstring>

#include "machine/async/families.h"
#include "machine/async/mbarrier.h"
#include "machine/isa/lanes.h"

namespace l4k::emu {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

struct StoreAsync {
  uint8_t element, count;  // bytes of an element; elements per lane
};
void store_async(Warp& w, const Inst& in) {
  const auto m = in.modifiers.as<StoreAsync>();
  u32 bytes = u32{m.element} * m.count;
  for (u32 l = w.active; l; l &= l - 1) {
    int lane = std::countr_zero(l);
    SharedPlace to = shared_place(w, address_of(w, in.at[0], lane), lane);
    SharedPlace bar = mbarrier_place(w, address_of(w, in.at[1], lane), true, lane);
    check_aligned(to.offset, bytes, lane);
    std::vector<uint8_t> data(bytes);
    for (u32 k = 0; k < m.count; ++k) {
      u64 v = get_lane(w, in.list[k], m.element, lane);
      std::memcpy(data.data() + k * m.element, &v, m.element);
    }
    check_no_mbarrier(*to.cta, to.offset, bytes, lane);
    to.cta->shared->check_async_write(to.offset, bytes, w.actor);
    to.cta->shared->begin_pending_write(to.offset, bytes);
    find_mbarrier(w, bar, lane);
    u32 epoch = to.cta->next_copy_epoch(*w.cta);
    BulkOp op;
    op.warp = &w, op.inst = &in, op.lane = lane;
    op.land = [to, bar, bytes, data = std::move(data), epoch, seen = w.actor.seen,
               proxied = w.actor.proxied] {
      std::memcpy(to.cta->shared->data() + to.offset, data.data(), bytes);
      to.cta->shared->end_pending_write(to.offset, bytes);
      to.cta->shared->note_async_write(to.offset, bytes, epoch);
      mbarrier_complete(*bar.cta, bar.offset, bytes, seen, proxied, epoch);
    };
    w.m->submit(std::move(op));
  }
}

}  // namespace

bool decode_store_async(Decoder& d) {
  if (d.in->opcode != "st" || !d.in->has("async")) return false;
  Inst& out = *d.out;
  d.take("async"), d.take("weak");
  d.take("shared::cluster"), d.take("mbarrier::complete_tx::bytes");
  int vector = d.take_one("v2 v4");
  Type t = d.take_type();
  d.finish();
  StoreAsync m{static_cast<uint8_t>(t.bits / 8),
               static_cast<uint8_t>(vector < 0 ? 1 : 2 << vector)};
  d.add_at(0, Space::shared);
  d.add_list(d.operand(1), t.bits, ListUse::read, t.kind == Kind::real);
  d.add_at(2, Space::shared);
  if (out.list.size() != m.count) throw PtxError(d.in->line, "st.async: wrong number of values");
  out.modifiers.store(m);
  out.run = store_async;
  return true;
}

}  // namespace l4k::emu
