"""When two results may be called equally well rounded: the rule of every test that compares two
roundings of one computation.

Two roundings never give the same error, and which of two is the smaller one on a given input is
chance: the order of a sum decides it, which depends on the CPU. So nothing is compared once, nor
by a margin that looked ample on one machine.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FALSE_ALARM = 1e-6


def excess(differences: Sequence[float]) -> float:
    """How far a sum of independent differences `ours - theirs` is above 0, in units of its size.

    If ours are no worse, each difference is as likely to be -d as d (or lower than that): given
    their sizes the sum is one of random signs, and by Hoeffding's inequality

        P(sum(d) >= t * sqrt(sum(d^2))) <= exp(-t^2 / 2)

    whatever the distribution, its spread, or the number of samples. The left side is at most
    sqrt(n), so n samples can say something only if sqrt(n) > t.
    """
    d = torch.tensor(differences, dtype=torch.float64)
    size = d.square().sum().sqrt().item()
    return d.sum().item() / size if size else 0.0


def limit(comparisons: int) -> float:
    """The `t` that any of this many comparisons exceeds by chance with probability FALSE_ALARM."""
    return math.sqrt(2 * math.log(comparisons / FALSE_ALARM))


def worse(measures: dict[str, Sequence[float]]) -> dict[str, float]:
    """The measures by which ours are worse: the excess of each that is above the limit."""
    most = limit(len(measures))
    assert all(len(d) > (1.1 * most) ** 2 for d in measures.values()), "too few samples to tell"
    return {name: t for name, d in measures.items() if (t := excess(d)) > most}


def coarse(bits: int) -> Callable[[Tensor], Tensor]:
    """A fault to plant: one more rounding, to this many significant bits (bfloat16 has 8)."""

    def rounded(x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x.float())
        return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent).to(x.dtype)

    return rounded
