"""The streaming kernel with bf16 and e4m3 weights, which `gemm` takes for few rows: exact sums
however SMs divide them, ends of N and K inside a unit, scales, experts, what it reads, when."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.checks.inputs import FP8, Maker
from bench.checks.kernel_checks import device_error, same_bits
from l4kernels import STATUS
from l4kernels.bench.counters import count
from l4kernels.ops import gemm, gemm_swiglu_fp8
from l4kernels.testing import assert_close, chained, emulated, relative_error
from tools.gemm_configs import STREAM, gemm_config

pytestmark = pytest.mark.skipif("gemm" not in STATUS.kernels, reason=STATUS.reason or "no kernel")

MODES = ("late", "early", "random")
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=["bf16", "e4m3"])
SCALINGS = [("tensor", "tensor"), ("row", "row"), ("1x128", "128x128"), ("1x128", "row")]
NAN = float("nan")


def maker(seed: int = 0) -> Maker:
    return Maker("cpu", torch.bfloat16, seed)


def operands(
    make: Maker, dtype: torch.dtype, m: int, *b_shape: int
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Small integers, whose float32 sums are exact, as A `[m, K]` and B `[.., N, K]`."""
    a, b = (make.integers(*s, low=-3, high=4).to(dtype) for s in ((m, b_shape[-1]), b_shape))
    options: dict[str, Any] = {"config": STREAM, "out_dtype": torch.float32}
    if dtype == FP8:
        options |= {"sfa": torch.ones(1), "sfb": torch.ones(*b_shape[:-2], 1)}
    return a, b, options


def check_exact(a: Tensor, b: Tensor, options: dict[str, Any], **settings: Any) -> None:
    with emulated(**settings):
        got = gemm(a, b, **options)
    assert torch.equal(got, gemm.reference(a, b, **options))
    assert device_error() == ""


def shapes(dtype: torch.dtype) -> list[tuple[int, int]]:
    """N inside a row tile, K inside a unit, as small as they get, and rings that wrap."""
    return [(16, 128), (8, 16), (136, 656), (72, 1280), (24, 80 if dtype == FP8 else 72)]


@pytest.mark.parametrize("mode", MODES)
@DTYPES
def test_none_to_17_tokens_are_exact(dtype, mode):
    """One SM, and more than there are tiles of rows: splits of K."""
    for m in range(18):
        for n, k in shapes(dtype):
            a, b, options = operands(maker(m), dtype, m, n, k)
            check_exact(a, b, options, mode=mode, seed=m, sms=(1, 2, 4, 7)[m % 4])


@pytest.mark.parametrize("sms", [1, 2, 3, 5, 132])
@pytest.mark.parametrize("m, k", [(1, 5120), (9, 8192), (16, 5120), (17, 4096), (12, 16384)])
@DTYPES
def test_full_depth_is_exact(dtype, m, k, sms):
    """The ring wraps; rows of such a K are sliced. On 132 SMs every tile is split."""
    a, b, options = operands(maker(m), dtype, m, 72, k)
    check_exact(a, b, options, mode="random", seed=sms, sms=sms)


COUNTS = {
    "mixed": [3, 0, 17, 1],
    "one takes all": [0, 0, 20, 0],
    "one each": [1] * 17,
    "127 of 128 are empty": [0] * 77 + [12] + [0] * 50,
    "more than a warp lists": [i % 2 for i in range(70)],
    "none": [0, 0, 0],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", COUNTS)
@DTYPES
def test_experts_of_every_size_are_exact(dtype, name, mode):
    """Their last row tile sticks out into the next expert. Rows that none owns are NaN, and their
    results zero."""
    counts = COUNTS[name]
    m = sum(counts) + 3
    a, b, options = operands(maker(m), dtype, m, len(counts), 40, 400)
    a[m - 3 :] = NAN
    options |= {"expert_offsets": maker().offsets(counts), "row_scale": torch.full((m,), 0.5)}
    with emulated(mode=mode, seed=7, sms=5):
        got = gemm(a, b, **options)
    a[m - 3 :] = 0
    assert torch.equal(got, gemm.reference(a, b, **options))
    assert not got[m - 3 :].any() and device_error() == ""


@DTYPES
def test_sliced_experts_beside_others_are_exact(dtype):
    counts, k = [16, 2, 0, 9], 10240
    a, b, options = operands(maker(3), dtype, sum(counts), len(counts), 24, k)
    options["expert_offsets"] = maker().offsets(counts)
    for sms, mode in zip((1, 3, 16), MODES, strict=True):
        check_exact(a, b, options, mode=mode, seed=sms, sms=sms)


@pytest.mark.parametrize("sfa, sfb", SCALINGS)
@pytest.mark.parametrize("m", [3, 13, 27])
def test_scales_of_every_layout(m, sfa, sfb):
    """Those along K are multiplied in at every unit; the last 128 x 128 block is not whole."""
    make = maker(m)
    (a, sa), (b, sb) = make.fp8(m, 1280, scaling=sfa), make.fp8(200, 1280, scaling=sfb)
    options: dict[str, Any] = {"sfa": sa, "sfb": sb, "out_dtype": torch.float32}
    with emulated(sms=3):
        got = gemm(a, b, config=STREAM, **options)
    assert_close(got, gemm.reference(a, b, **options), 1e-5)
    b, sb = make.fp8(3, 144, 1280, scaling=sfb)
    options |= {"sfb": sb, "expert_offsets": make.offsets([1, 0, m - 2]), "activation": "swiglu"}
    with emulated(sms=7, mode="random"):
        got = gemm(a, b, config=STREAM, **options)
    assert_close(got, gemm.reference(a, b, **options), 1e-5)


def test_scales_of_sliced_rows():
    """Their blocks are counted from the slice's first."""
    make = maker()
    (a, sa), (b, sb) = make.fp8(16, 16384, scaling="1x128"), make.fp8(32, 16384, scaling="128x128")
    options: dict[str, Any] = {"sfa": sa, "sfb": sb, "out_dtype": torch.float32}
    with emulated(sms=5):
        got = gemm(a, b, config=STREAM, **options)
    assert_close(got, gemm.reference(a, b, **options), 1e-5)


def test_every_e4m3_code_is_exact():
    """Times one: also subnormals, the largest, zeros of both signs and NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    one = torch.ones(1)
    eye = torch.eye(16, 256).to(FP8)
    options: dict[str, Any] = {"sfa": one, "sfb": one, "out_dtype": torch.float32}
    for first in range(0, 256, 16):
        b = torch.zeros(16, 256).to(FP8)
        b.view(torch.uint8).diagonal()[:] = codes[first : first + 16].view(torch.uint8)
        with emulated():
            got = gemm(eye, b, config=STREAM, **options).diagonal()
            swapped = gemm(b, eye, config=STREAM, **options).diagonal()
        wanted = codes[first : first + 16].float()
        assert torch.equal(got.nan_to_num(7e9), wanted.nan_to_num(7e9))
        assert torch.equal(swapped.nan_to_num(7e9), wanted.nan_to_num(7e9))


EPILOGUES = {
    "bias gelu": {"bias": True, "activation": "gelu"},
    "swiglu": {"activation": "swiglu", "row_scale": True},
    "swiglu bias residual": {"activation": "swiglu", "bias": True, "residual": True},
    "all of none": {"row_scale": True, "bias": True, "residual": True},
}


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", EPILOGUES)
@DTYPES
def test_epilogues(dtype, name, out_dtype):
    """Of sums that are whole, that meet, and that are sliced; N ends inside a row tile."""
    swiglu = "swiglu" in name
    for m, n, k, sms in ((3, 80, 256, 2), (8, 80, 1280, 7), (16, 48, 5120, 3)):
        n += 0 if swiglu else 8
        make = maker(m)
        columns = n // 2 if swiglu else n
        given = {
            "bias": make.randn(n),
            "residual": make.randn(m, columns + 8)[:, :columns],
            "row_scale": make.uniform(m, low=-1),
        }
        options: dict[str, Any] = {"out_dtype": out_dtype} | EPILOGUES[name]
        options |= {key: value for key, value in given.items() if key in options}
        if dtype == FP8:
            (a, options["sfa"]), (b, options["sfb"]) = (
                make.fp8(rows, k, scaling="row") for rows in (m, n)
            )
        else:
            a, b = make.randn(m, k), make.randn(n, k, scale=k**-0.5)
        with emulated(sms=sms):
            got = gemm(a, b, config=STREAM, **options)
        expected = gemm.reference(a, b, **options)
        assert_close(got, expected, 3e-3 if out_dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("m", [1, 8, 16])
def test_bf16_sums_are_those_of_float32(m):
    make = maker(m)
    a, b = make.randn(m, 5120), make.randn(64, 5120)
    with emulated():
        got = gemm(a, b, config=STREAM, out_dtype=torch.float32)
    assert relative_error(got, a.double() @ b.double().T) < 1e-6


@pytest.mark.parametrize("place", [0, 655])
@DTYPES
def test_a_number_that_is_none_stays_in_its_row_and_column(dtype, place):
    """At the end of K: neither rows of A nor what lies behind them in memory meet zeros of B."""
    a, b, options = operands(maker(), dtype, 12, 136, 656)
    a[5, place] = b[19, place] = NAN
    rows = torch.full((12, 672), NAN).to(dtype)[:, :656]
    rows.copy_(a)
    with emulated(sms=5):
        got = gemm(rows, b, **options)
    expected = gemm.reference(a, b, **options)
    assert torch.equal(got.nan_to_num(7e9), expected.nan_to_num(7e9))
    assert got.isnan().sum() == 136 + 12 - 1


@DTYPES
def test_hostile_offsets_touch_nothing_outside(dtype):
    a, b, options = operands(maker(), dtype, 30, 4, 24, 144)
    device_error()
    for bad in (
        [0, 20, 10, 25, 30],
        [0, 9, 2**31 - 1, 20, 30],
        [0, -5, 3, 7, 99],
        [3, 9, 9, 9, 30],
    ):
        with emulated() as control:
            out = gemm(a, b, **options, expert_offsets=maker().tensor(bad))
            assert control.last_report() is None
        assert device_error() == "gemm: expert_offsets"
        assert out.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_a_chain_of_dependent_launches(mode):
    """A, B and the residual may all be results of the launch before: B goes to L2 earlier."""
    make = maker()
    x, w = (make.integers(*s, low=-3, high=4).bfloat16() for s in ((16, 256), (256, 256)))
    options = {"config": STREAM}
    with emulated(mode=mode, sms=2), chained():
        y = gemm(x, w, **options)
        z = gemm(y, w, residual=y, **options)
        last = gemm(x, z, **options)
    y = gemm.reference(x, w)
    z = gemm.reference(y, w, residual=y)
    assert torch.equal(last, gemm.reference(x, z))


@pytest.mark.parametrize("m, k, counts", [(8, 2560, None), (16, 10240, None), (13, 656, [9, 0, 4])])
@DTYPES
def test_the_same_bits_on_every_run(dtype, m, k, counts):
    a, b, options = operands(maker(m), dtype, m, *([3] if counts else []), 72, k)
    a, b = (maker(m).randn(*t.shape).to(dtype) for t in (a, b))
    if counts:
        options["expert_offsets"] = maker().offsets(counts)
    results = []
    for seed in range(6):
        with emulated(mode="random", seed=seed, sms=7):
            results.append(gemm(a, b, **options))
    assert all(same_bits(results[0], again) for again in results[1:])


@pytest.mark.parametrize("m", [8, 16])
@DTYPES
def test_a_token_has_the_same_bits_at_every_place_of_a_dense_batch(dtype, m):
    make = maker(m)
    a, b = make.randn(m, 5120).to(dtype), make.randn(40, 5120).to(dtype)
    options: dict[str, Any] = {"config": STREAM, "out_dtype": torch.float32}
    if dtype == FP8:
        options |= {"sfa": torch.ones(1), "sfb": torch.ones(1)}
    order = make.permutation(m).long()
    for sms in (1, 4, 132):
        with emulated(sms=sms):
            whole = gemm(a, b, **options)
            moved = gemm(a.view(torch.uint8)[order].view(dtype), b, **options)
        assert same_bits(whole[order], moved)


@DTYPES
def test_weights_beyond_4_gib(dtype):
    """A sparse buffer whose last expert begins past 2^31 elements."""
    experts, n, k, m = 256, 65_800, 128, 5
    small, rows, options = operands(maker(), dtype, m, 1, n, k)
    b = torch.empty(experts, n, k, dtype=dtype)
    b[-1] = rows[0]
    expected = gemm.reference(
        small, rows, **options, expert_offsets=torch.tensor([0, m], dtype=torch.int32)
    )
    if dtype == FP8:
        options["sfb"] = torch.ones(experts, 1)
    offsets = torch.tensor([0] * experts + [m], dtype=torch.int32)
    with emulated():
        assert torch.equal(gemm(small, b, expert_offsets=offsets, **options), expected)


# O on a quarter of the SMs.
@pytest.mark.parametrize("m", [1, 8, 16])
@DTYPES
def test_weights_are_read_once(dtype, m):
    """Rows of A and the sums that meet are the rest; the swapped tile multiplies 16 columns."""
    a, b, options = operands(maker(), dtype, m, 1280, 5120)
    del options["out_dtype"]
    streamed = count("gemm", (a, b), options, sms=33)
    assert streamed.touched_bytes <= 1.02 * streamed.needed_bytes, str(streamed)
    rows = 33 * a.nbytes  # each SM's, all of them
    assert streamed.requested_bytes <= 1.02 * b.nbytes + 1.1 * rows + 8 * 1280 * m, str(streamed)
    assert streamed.bank_conflicts == 0 and streamed.launches == 1, str(streamed)
    tiles = 8 * -(-m // 8)
    assert streamed.tensor_flop == 2 * tiles * 1280 * 5120
    name = "fp8_swap_16x128_promote" if dtype == FP8 else "bf16_swap_16x128"
    swapped = count("gemm", (a, b), options | {"config": 300 + gemm_config(name).number}, sms=33)
    assert streamed.tensor_flop <= swapped.tensor_flop


def test_few_rows_stream_without_being_asked(capfd):
    """Sixteen when dense, 32 with experts, none with e4m3 results; those refuse to."""
    a, b, options = operands(maker(), FP8, 40, 2, 256, 128)
    dense = options | {"sfb": torch.ones(1), "config": -1}
    offsets = maker().offsets([20, 12])
    with emulated() as control:
        for kernel, call in (
            ("stream", lambda: gemm(a[:16], b[0], **dense)),
            ("gemm", lambda: gemm(a[:17], b[0], **dense)),
            (
                "stream",
                lambda: gemm(a[:32], b, **(options | {"config": -1}), expert_offsets=offsets),
            ),
            ("gemm", lambda: gemm(a[:33], b, **(options | {"config": -2}), expert_offsets=offsets)),
            ("gemm", lambda: gemm_swiglu_fp8(a[:2], b[0], sfa=torch.ones(1), sfb=torch.ones(1))),
        ):
            control.reset()
            call()
            (name,) = control.counters()
            assert ("stream_gemm" in name) == (kernel == "stream"), name
        with pytest.raises(RuntimeError, match="expected config to be a row for these"):
            gemm_swiglu_fp8(a[:2], b[0], sfa=torch.ones(1), sfb=torch.ones(1), config=STREAM)
        with pytest.raises(RuntimeError, match="expected config to be a row for these"):
            gemm(a.repeat(5, 1), b[0], **(dense | {"config": STREAM}))
