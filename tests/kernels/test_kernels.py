"""Every compiled kernel, case and mode in the emulator, against the typed references."""

import pytest
import torch

from bench.checks.inputs import Case
from bench.checks.kernel_checks import check, kernel_cases, same_bits
from l4kernels import STATUS
from l4kernels.ops import OPS
from l4kernels.testing import chained, emulated

MODES = ("late", "early", "random")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch fills every new tensor with NaN: what a kernel leaves unwritten does not pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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


def size(case: Case) -> int:
    return sum(t.nbytes for t in case.args if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("op", KERNELS)
def test_kernel_gives_the_same_bits_on_every_run(op):
    """20 repeats of a small case under 20 schedules, and the largest case under two."""
    cases = sorted(filter(size, kernel_cases(op)), key=size)
    for case, repeats in ((cases[0], 20), (cases[-1], 2)):
        results = []
        for seed in range(repeats):
            # The emulator's approximations vary with the seed, on a GPU they are what they are.
            with emulated(mode="random", seed=seed, sms=4 + seed % 3, perturb=False):
                results.append(check(op, case))
        for again in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], again, strict=True))


def test_dependent_launches_overlap_and_keep_their_order():
    x = torch.randn(40, 512).bfloat16()
    with emulated(mode="late", sms=2), chained():
        middle = OPS["silu_mul"](x)
        last = OPS["silu_mul"](middle)
    expected = OPS["silu_mul"].reference(OPS["silu_mul"].reference(x))
    torch.testing.assert_close(last, expected, rtol=2e-2, atol=1e-3)
