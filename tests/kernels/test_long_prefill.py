"""What is lost where a weighted sum stays in a tensor core's accumulator over very many keys."""

from unittest import mock

import numpy as np
import pytest
import torch

from bench.checks import gpu_checks
from l4kernels import STATUS, ops
from l4kernels.testing import emulated
from tools.model import headers

RANGE = 128 * headers.integer(
    headers.CSRC / "kernels" / "flash_prefill" / "schedule.h", r"kAnchorTiles = (\d+)"
)
"""Keys that one accumulator adds up."""

needs_kernels = pytest.mark.skipif(
    not STATUS.loaded, reason="no compiled kernels: run `make build`"
)


def lost(keys, queries, spoil=None):
    """In the emulator; of a result that `spoil` has changed, with the reference instead."""
    torch.manual_seed(1)
    prefill = ops.flash_prefill.reference

    def spoiled(q, k, v, *args, **kwargs):
        result = prefill(q.float(), k.float(), v.float(), *args, **kwargs)
        return result._replace(out=spoil(result.out).bfloat16())

    with mock.patch.object(gpu_checks, "LONG_PREFILL", (keys, queries)):
        if spoil is None:
            with emulated(sms=1):  # nothing to gain from cutting the keys into pieces
                return gpu_checks.long_prefill_of_ones("cpu")
        with mock.patch.object(ops, "flash_prefill", spoiled):
            return gpu_checks.long_prefill_of_ones("cpu")


@needs_kernels
def test_the_kernel_loses_nothing_where_its_sums_are_put_together():
    """Two ranges of keys, the second of a few tiles. The emulator adds bf16 products in float32 and
    rounds to nearest: this is the kernel's share, its rounded weights and its rescaling, not the
    hardware's."""
    found = lost(RANGE + 512, 4)
    assert found["keys"] == RANGE + 512 and abs(found["lost"]) < 1e-4
    assert found["error_of_ones"] <= 2.0**-8


def test_the_check_sees_a_hundredth_of_a_step():
    for loss in (3e-4, 6e-4, 9e-4):
        assert lost(4096, 4, lambda out, loss=loss: out * (1 - loss))["lost"] == pytest.approx(
            loss, abs=1e-4
        )
    with pytest.raises(AssertionError, match=r"more than 0\.001"):
        lost(4096, 4, lambda out: out * (1 - 2e-3))


def truncated(keys, extra_bits, lanes=16, ranges=1):
    """The published model of Hopper's tensor cores for bf16 (arXiv 2512.07004): the accumulator and
    16 products are cut to the largest exponent's 24 bits and some more, the sum to 24 bits. Sums of
    the ranges of keys are added in float32, one after the other."""
    random, wide = np.random.default_rng(0), (ranges, lanes)
    accumulator, exact = np.zeros(wide), np.zeros(wide)
    for _ in range(keys // ranges // 16384):
        weights = torch.from_numpy(np.exp(random.standard_normal((1024, 16, *wide)) - 5))
        for step in weights.bfloat16().double().numpy():
            shift = 24 + extra_bits - np.frexp(np.maximum(accumulator, step.max(0)))[1]
            total = np.trunc(np.ldexp(accumulator, shift))
            total += np.trunc(np.ldexp(step, shift)).sum(0)
            mantissa, exponent = np.frexp(np.ldexp(total, -shift))
            accumulator = np.ldexp(np.trunc(np.ldexp(mantissa, 24)), exponent - 24)
            exact += step.sum(0)
    total = np.zeros(lanes, np.float32)
    for part in accumulator.astype(np.float32):
        total += part
    return (1 - total / exact.sum(0)).mean()


def test_a_model_of_the_hardware_loses_what_the_decision_says():
    """In one accumulator 0.5 % at 1M keys, as measured; in one for each range 0.02 % at 10M."""
    assert 3e-3 < truncated(1 << 20, 2, lanes=4) < 7e-3
    assert 5e-5 < truncated(160 * RANGE, 2, lanes=2, ranges=160) < 4e-4
