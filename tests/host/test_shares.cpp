// Shares of equal units: contiguous, all of them once, none longer than another by more than one.
#include <algorithm>
#include <limits>

#include "expect.h"
#include "tile/shares.h"

namespace {

using l4k::Shares;

void check(const Shares& shares) {
  EXPECT(shares.first(0) == 0 && shares.first(shares.ctas) == shares.units, shares.units);
  const int least = shares.units / shares.ctas;
  for (int cta = 0; cta < shares.ctas; ++cta) {
    const int first = shares.first(cta), end = shares.first(cta + 1);
    EXPECT(end - first == least || end - first == least + 1, end - first << " of " << least);
    for (int unit : {first, first + 1, end - 1})
      if (first <= unit && unit < end) EXPECT(shares.owner(unit) == cta, unit << " of " << cta);
  }
}

void every_unit_has_one_owner() {
  for (int units = 1; units <= 300; ++units)
    for (int ctas = 1; ctas <= 140; ++ctas) {
      const Shares shares{units, ctas};
      check(shares);
      for (int unit = 0; unit < units; ++unit) {
        const int owner = shares.owner(unit);
        EXPECT(shares.first(owner) <= unit && unit < shares.first(owner + 1), unit);
      }
    }
}

void products_have_64_bits() {
  const int most = std::numeric_limits<int>::max();
  for (int units : {most, most - 1, 1 << 30, 100'000'007})
    for (int ctas : {1, 2, 131, 132, 1000}) check({units, ctas});
}

}  // namespace

int main() {
  every_unit_has_one_owner();
  products_have_64_bits();
}
