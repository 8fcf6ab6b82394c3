"""The GEMM kernel in the emulator, row by row of its table: exactness, promotion, offsets."""

import pytest
import torch

from l4kernels import STATUS
from l4kernels.ops import gemm, quantize_fp8
from l4kernels.testing import assert_close, emulated
from tests.making import FP8, Maker

BF16_ROWS, GELU_ROW = (0, 1, 3, 7, 8, 9), 2
PROMOTED_ROWS, FAST_ROWS = (4, 10, 11, 12), (5, 6, 13, 14, 15)

pytestmark = pytest.mark.skipif("gemm" not in STATUS.kernels, reason=STATUS.reason or "no kernel")


def integers(make: Maker, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return make.integers(*shape, low=-3, high=4).to(dtype)


@pytest.mark.parametrize("mode", ["late", "early", "random"])
@pytest.mark.parametrize("config", BF16_ROWS)
def test_every_bf16_row_is_exact_past_the_ring_and_across_tiles(config, mode):
    """Integers small enough that float32 sums are exact; K wraps the ring of stages."""
    make = Maker("cpu", torch.bfloat16, config)
    a, b = integers(make, 200, 640), integers(make, 3, 264, 640)
    options = {"expert_offsets": make.offsets([130, 0, 64]), "out_dtype": torch.float32}
    with emulated(mode=mode, seed=config, sms=3):
        got = gemm(a, b, config=config, **options)
    assert torch.equal(got, gemm.reference(a, b, **options))


@pytest.mark.parametrize("config", [PROMOTED_ROW, FAST_ROW])
def test_every_fp8_row_is_exact_where_no_bits_are_lost(config):
    make = Maker("cpu", torch.bfloat16, 0)
    a, b = integers(make, 70, 768, dtype=FP8), integers(make, 264, 768, dtype=FP8)
    one = torch.ones(1)
    with emulated(fp8_accumulation="exact"):
        got = gemm(a, b, sfa=one, sfb=one, out_dtype=torch.float32, config=config)
    expected = gemm.reference(a, b, sfa=one, sfb=one, out_dtype=torch.float32)
    assert torch.equal(got, expected)


def test_promotion_keeps_what_fast_accumulation_loses():
    """The guard of the guard: the test that promoted sums pass, un-promoted ones must fail.

    Positive values, so that what truncation drops adds up instead of cancelling.
    """
    bound = 1e-3
    make = Maker("cpu", torch.bfloat16, 0)
    (a, sfa), (b, sfb) = (quantize_fp8(make.uniform(rows, 8192), "row") for rows in (16, 16))
    expected = gemm.reference(a, b, sfa=sfa, sfb=sfb, out_dtype=torch.float32)
    with emulated(fp8_accumulation="hopper"):
        promoted, fast = (
            gemm(a, b, sfa=sfa, sfb=sfb, out_dtype=torch.float32, config=config)
            for config in (PROMOTED_ROW, FAST_ROW)
        )
    assert_close(promoted, expected, bound)
    with pytest.raises(AssertionError):
        assert_close(fast, expected, bound)


def test_one_expert_takes_all_and_127_of_128_are_empty():
    make = Maker("cpu", torch.bfloat16, 0)
    counts = [0] * 128
    counts[77] = 33
    a, b = integers(make, 33, 128), integers(make, 128, 16, 128)
    offsets = make.offsets(counts)
    with emulated():
        got = gemm(a, b, expert_offsets=offsets)
    assert torch.equal(got, gemm.reference(a, b, expert_offsets=offsets))


def test_hostile_offsets_touch_nothing_outside():
    """Offsets that do not ascend, or leave the matrix, are clamped: no access out of bounds."""
    make = Maker("cpu", torch.bfloat16, 0)
    a, b = integers(make, 40, 128), integers(make, 4, 32, 128)
    for bad in ([0, 30, 10, 35, 40], [0, 9, 2**31 - 1, 20, 40], [0, -5, 3, 7, 99]):
        with emulated() as control:
            out = gemm(a, b, expert_offsets=make.tensor(bad))
            assert control.last_report() is None
        assert out.isfinite().all()


def test_padding_rows_full_of_nan_do_not_leak():
    make = Maker("cpu", torch.bfloat16, 0)
    a, b = integers(make, 50, 256), integers(make, 2, 64, 256)
    offsets = make.offsets([17, 20])
    a[37:] = float("nan")
    with emulated():
        got = gemm(a, b, expert_offsets=offsets)
    a[37:] = 0
    assert torch.equal(got, gemm.reference(a, b, expert_offsets=offsets))
    assert not got[37:].any()
