"""What is lost where a weighted sum stays in a tensor core's accumulator over very many keys."""

from unittest import mock

import numpy as np
import pytest
import torch

from bench.checks import gpu_checks
from l4kernels import STATUS, ops
from l4kernels.testing import emulated

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
            with emulated():
                return gpu_checks.long_prefill_of_ones("cpu")
        with mock.patch.object(ops, "flash_prefill", spoiled):
            return gpu_checks.long_prefill_of_ones("cpu")


@needs_kernels
def test_the_kernel_loses_nothing_over_some_ten_thousand_keys():
    """The emulator adds bf16 products in float32 and rounds to nearest: this is the kernel's share,
    its rounded weights and its rescaling, not the hardware's."""
    found = lost(32_768, 4)
    assert found["keys"] == 32_768 and abs(found["lost"]) < 1e-4
    assert found["error_of_ones"] <= 2.0**-8


def test_the_check_sees_a_hundredth_of_a_step():
    for loss in (3e-4, 1e-3, 1.8e-3):
        assert lost(4096, 4, lambda out, loss=loss: out * (1 - loss))["lost"] == pytest.approx(
            loss, abs=1e-4
        )
    with pytest.raises(AssertionError, match=r"more than 0\.002"):
        lost(4096, 4, lambda out: out * (1 - 3e-3))


def truncated(keys, extra_bits, lanes=16):
    """The published model of Hopper's tensor cores for bf16 (arXiv 2512.07004): the accumulator and
    16 products are cut to the largest exponent's 24 bits and some more, the sum to 24 bits."""
    random, accumulator, exact = np.random.default_rng(0), np.zeros(lanes), np.zeros(lanes)
    for _ in range(keys // 16384):
        weights = torch.from_numpy(np.exp(random.standard_normal((1024, 16, lanes)) - 5))
        for step in weights.bfloat16().double().numpy():
            shift = 24 + extra_bits - np.frexp(np.maximum(accumulator, step.max(0)))[1]
            total = np.trunc(np.ldexp(accumulator, shift))
            total += np.trunc(np.ldexp(step, shift)).sum(0)
            mantissa, exponent = np.frexp(np.ldexp(total, -shift))
            accumulator = np.ldexp(np.trunc(np.ldexp(mantissa, 24)), exponent - 24)
            exact += step.sum(0)
    return (1 - accumulator / exact).mean()


@pytest.mark.parametrize("keys, low, high", [(1 << 17, 1e-4, 4e-4), (1 << 20, 3e-3, 7e-3)])
def test_a_model_of_the_hardware_loses_what_the_decision_says(keys, low, high):
    assert low < truncated(keys, 2) < high
