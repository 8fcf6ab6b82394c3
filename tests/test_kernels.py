"""Every compiled kernel, case and mode in the emulator, against the typed references."""

import pytest
import torch

from l4kernels import STATUS
from l4kernels.ops import OPS
from l4kernels.testing import chained, emulated
from tests.kernel_checks import check, kernel_cases, same_bits

MODES = ("late", "early", "random")
KERNELS = [name for name in sorted(OPS) if name in STATUS.kernels]
CASES = [
    pytest.param(op, case, id=f"{op}-{case}".replace(" ", "_"))
    for op in KERNELS
    for case in kernel_cases(op)
]


@pytest.mark.parametrize("op, case", CASES)
def test_kernel_equals_its_reference_in_every_mode(op, case):
    for seed, mode in enumerate(MODES):
        with emulated(mode=mode, seed=seed):
            check(op, case)


@pytest.mark.parametrize("op", KERNELS)
def test_kernel_gives_the_same_bits_on_every_run(op):
    case = max(kernel_cases(op), key=lambda c: sum(getattr(a, "nbytes", 0) for a in c.args))
    # The emulator's approximations vary with the seed, on a GPU they are what they are.
    with emulated(mode="random", seed=1, perturb=False):
        first = check(op, case)
    with emulated(mode="random", seed=2, sms=7, perturb=False):
        second = check(op, case)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


def test_dependent_launches_overlap_and_keep_their_order():
    x = torch.randn(40, 512).bfloat16()
    with emulated(mode="late", sms=2), chained():
        middle = OPS["silu_mul"](x)
        last = OPS["silu_mul"](middle)
    expected = OPS["silu_mul"].reference(OPS["silu_mul"].reference(x))
    torch.testing.assert_close(last, expected, rtol=2e-2, atol=1e-3)
