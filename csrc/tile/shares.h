// How work that is one long list of equal units is shared out: CTA c gets a contiguous range, and no
// share differs from another by more than one unit. A tile of a result whose units lie in several
// shares is summed up by the last of its CTAs (tile/arrive.cuh). Integers only.
#pragma once
#include "tile/base.h"

namespace l4k {

struct Shares {
  int units, ctas;

  L4K_HD constexpr int first(int cta) const {
    return cta * (units / ctas) + cta * (units % ctas) / ctas;  // units * cta / ctas
  }
  // Whose share holds the unit.
  L4K_HD constexpr int owner(int unit) const {
    return static_cast<int>(((int64_t{unit} + 1) * ctas - 1) / units);
  }
};

}  // namespace l4k
