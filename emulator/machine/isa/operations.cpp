#include "machine/isa/operations.h"

namespace l4k::emu {
namespace {

uint32_t width_of(Width w, const Type& t) {
  return w == Width::type ? t.bits : w == Width::word ? 32 : 2 * t.bits;
}

}  // namespace

const Operation* find_operation(std::span<const Operation> table, const std::string& name) {
  for (const Operation& o : table)
    if (name == o.name) return &o;
  return nullptr;
}

bool finish_operation(Decoder& d, Handler h, const Type& t, const Form& form) {
  if (!h) d.unsupported();
  d.finish();
  d.out->run = h;
  d.out->propagates = true;
  d.add_target(0, width_of(form.result, t));
  const Width widths[] = {Width::type, form.second, form.third, form.third};
  for (int i = 0; i < form.sources; ++i)
    d.add_source(static_cast<size_t>(i + 1), width_of(widths[i], t));
  return true;
}

}  // namespace l4k::emu
