"""The streaming int4 kernel in the emulator: exact sums however SMs divide them, epilogues,
experts, numbers that are none, the same bits again. Memory: test_stream_gemm_memory.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.checks.edges_w4 import exact_rows as rows
from bench.checks.edges_w4 import exact_tiles as weights
from bench.checks.inputs import I32, Maker
from bench.checks.kernel_checks import device_error, same_bits
from l4kernels import STATUS, ops
from l4kernels.ops import w4_gemm
from l4kernels.testing import assert_close, emulated, relative_error

pytestmark = pytest.mark.skipif(
    "w4_gemm" not in STATUS.kernels, reason=STATUS.reason or "no kernel"
)

MODES = ("late", "early", "random")
FORMATS = [(group, zeros) for group in (128, 64, 32) for zeros in (False, True)]
STREAM: dict[str, Any] = {"config": 0}
NAN, INF = float("nan"), float("inf")


def maker(seed: int = 0) -> Maker:
    return Maker("cpu", torch.bfloat16, seed)


def check_exact(a: Tensor, b: Tensor, options: dict[str, Any] | None = None, **settings) -> None:
    options = {"out_dtype": torch.float32} | (options or {})
    with emulated(**settings):
        got = w4_gemm(a, b, **STREAM, **options)
    assert torch.equal(got, w4_gemm.reference(a, b, **options))
    assert device_error() == ""


@pytest.mark.parametrize("mode", MODES)
def test_none_to_17_tokens_are_exact(mode):
    """One SM, and more than there are tiles of rows: splits of K."""
    for m in range(18):
        make = maker(m)
        for n, k in ((48, 640), (16, 128), (160, 1280)):
            check_exact(
                rows(make, m, k), weights(make, n, k), mode=mode, seed=m, sms=(1, 2, 4, 7)[m % 4]
            )


@pytest.mark.parametrize("m", [3, 8, 12, 17])
@pytest.mark.parametrize("group, zeros", FORMATS)
def test_tiles_of_every_format_are_exact(group, zeros, m):
    make = maker(group + m)
    b = weights(make, 80, 1152, group=group, zeros=zeros)
    for seed, mode in enumerate(MODES):
        check_exact(rows(make, m, 1152), b, mode=mode, seed=seed, sms=3)


@pytest.mark.parametrize("zero", range(16))
def test_every_code_less_every_zero_point_is_exact(zero):
    """Row by row: one of A is 1, and each of the 16 codes stands in each field of a word."""
    codes = (torch.arange(128) + torch.arange(16)[:, None]) % 16
    points = torch.full((16, 1), zero, dtype=torch.uint8)
    scales = torch.ones(16, 1).bfloat16()
    b = ops.tile_int4(ops.pack_int4(codes - 8), scales, points)
    wanted = (codes - zero).float().T
    parts = torch.eye(128).bfloat16().split(32)

    def product(tiles: Tensor) -> Tensor:
        return torch.cat(
            [w4_gemm(part, tiles, out_dtype=torch.float32, **STREAM) for part in parts]
        )

    with emulated():
        got = product(b)
        if zero == 8:
            plain = ops.tile_int4(ops.pack_int4(codes - 8), scales)
            assert torch.equal(product(plain), wanted)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("sms", [1, 2, 3, 5, 132])
@pytest.mark.parametrize("m, k", [(1, 5120), (9, 5120), (16, 5120), (17, 4096), (12, 8192)])
def test_full_depth_is_exact(m, k, sms):
    """The ring wraps; 9 rows and more of such a K are sliced. On 132 SMs every tile is split."""
    make = maker(m)
    check_exact(rows(make, m, k), weights(make, 64, k), mode="random", seed=sms, sms=sms)


EPILOGUES = {
    "bias gelu": {"bias": True, "activation": "gelu"},
    "swiglu": {"activation": "swiglu", "row_scale": True},
    "swiglu bias residual": {"activation": "swiglu", "bias": True, "residual": True},
    "residual": {"residual": True},
    "all of none": {"row_scale": True, "bias": True, "residual": True},
}


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name, out_dtype):
    """Of 0 to 17 tokens; of sums that are whole, that meet, and that are sliced."""
    few = [(m, 256, 2) for m in range(18)]
    for m, k, sms in (*few, (8, 1280, 7), (16, 2304, 3), (11, 5120, 5)):
        make = maker(m)
        a, b = make.randn(m, k), make.tiles(64, k)
        options = dict(EPILOGUES[name])
        columns = 32 if options.get("activation") == "swiglu" else 64
        given = {
            "bias": make.randn(64),
            "residual": make.randn(m, columns + 8)[:, :columns],
            "row_scale": make.uniform(m, low=-1),
        }
        options |= {key: value for key, value in given.items() if key in options}
        with emulated(sms=sms):
            got = w4_gemm(a, b, out_dtype=out_dtype, **STREAM, **options)
        expected = w4_gemm.reference(a, b, out_dtype=out_dtype, **options)
        assert_close(got, expected, 3e-3 if out_dtype == torch.bfloat16 else 1e-4)


COUNTS = {
    "mixed": [3, 0, 17, 1],
    "one takes all": [0, 0, 20, 0],
    "one each": [1] * 17,
    "first and last": [9] + [0] * 30 + [1, 8],
    "127 of 128 are empty": [0] * 77 + [12] + [0] * 50,
    "more than a warp lists": [i % 2 for i in range(70)],
    "none": [0, 0, 0],
}


@pytest.mark.parametrize("tail", [0, 5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", COUNTS)
def test_experts_of_every_size_are_exact(name, mode, tail):
    """Rows that no expert owns are NaN, and their results zero."""
    counts = COUNTS[name]
    make, m = maker(len(counts)), sum(counts) + tail
    a, b = rows(make, m, 384), weights(make, len(counts), 48, 384)
    a[sum(counts) :] = NAN
    options = {"expert_offsets": make.offsets(counts), "row_scale": torch.full((m,), 0.5)}
    with emulated(mode=mode, seed=7, sms=5):
        got = w4_gemm(a, b, out_dtype=torch.float32, **STREAM, **options)
    a[sum(counts) :] = 0
    assert torch.equal(got, w4_gemm.reference(a, b, out_dtype=torch.float32, **options))
    assert not got[sum(counts) :].any() and device_error() == ""


@pytest.mark.parametrize("mode", MODES)
def test_sliced_experts_beside_others_are_exact(mode):
    """Of one launch: K in slices for 16 and 9 rows, whole for 2."""
    make, counts, k = maker(3), [16, 2, 0, 9], 2560
    b = weights(make, len(counts), 32, k)
    options = {"expert_offsets": make.offsets(counts)}
    for sms in (1, 3, 16):
        check_exact(rows(make, sum(counts), k), b, options, mode=mode, seed=sms, sms=sms)


def test_batches_drawn_at_random():
    for seed in range(40):
        make = maker(1000 + seed)

        def pick(*values: Any, make: Maker = make) -> Any:
            return values[int(make.integers(1, high=len(values)))]

        experts, m = pick(1, 2, 5, 17), pick(1, 2, 7, 8, 9, 15, 16, 17, 30)
        k, n = 128 * pick(1, 2, 5, 9, 20), 16 * pick(1, 2, 3, 7)
        group, zeros = pick(*FORMATS)
        options, shape = {}, (n, k)
        if experts > 1:
            ends = torch.sort(make.integers(experts, high=m + 1)).values
            options["expert_offsets"] = torch.cat([torch.zeros(1), ends]).to(I32)
            shape = (experts, n, k)
        b = weights(make, *shape, group=group, zeros=zeros)
        check_exact(
            rows(make, m, k), b, options, mode=MODES[seed % 3], seed=seed, sms=pick(1, 3, 9)
        )


def test_error_is_at_most_twice_that_of_a_bf16_product_of_the_same_weights():
    for m in (1, 8, 16):
        make = maker(m)
        a, weight = make.randn(m, 1024), make.int4(128, 1024)
        dequantised = ops.dequantize_int4(weight.packed, weight.scales).double()
        exact = a.double() @ dequantised.T
        theirs = relative_error(a @ dequantised.bfloat16().T, exact)
        with emulated():
            got = w4_gemm(a, ops.tile_int4(*weight), **STREAM)
        assert relative_error(got, exact) <= 2 * theirs


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("m", [5, 12])
def test_a_number_that_is_none_stays_in_its_row_or_column(m, bad):
    make = maker(m)
    for group, zeros in ((128, False), (32, True)):
        a, b = rows(make, m, 1280), weights(make, 64, 1280, group=group, zeros=zeros)
        expected = w4_gemm.reference(a, b, out_dtype=torch.float32)
        packed, scales, points = ops.untile_int4(b)
        wrong = a.clone()
        wrong[m - 2, 700] = bad
        scales[19, 0] = bad
        with emulated(sms=5):
            of_a = w4_gemm(wrong, b, out_dtype=torch.float32, **STREAM)
            in_tiles = ops.tile_int4(packed, scales, points)
            of_scales = w4_gemm(a, in_tiles, out_dtype=torch.float32, **STREAM)
        theirs = w4_gemm.reference(wrong, b, out_dtype=torch.float32)
        assert torch.equal(of_a.nan_to_num(0, 1, -1), theirs.nan_to_num(0, 1, -1))
        assert not of_a[m - 2].isfinite().any() and not of_scales[:, 19].isfinite().any()
        kept = torch.arange(64) != 19
        assert torch.equal(of_scales[:, kept], expected[:, kept])


# What is promised: docs/kernels/stream_gemm.md.
@pytest.mark.parametrize("m, k, counts", [(8, 2560, None), (16, 5120, None), (13, 640, [9, 0, 4])])
def test_the_same_bits_on_every_run(m, k, counts):
    make = maker(m)
    shape = (64, k) if counts is None else (len(counts), 64, k)
    a, b = make.randn(m, k), make.tiles(*shape)
    options = {} if counts is None else {"expert_offsets": make.offsets(counts)}
    results = []
    for seed in range(8):
        with emulated(mode="random", seed=seed, sms=7):
            results.append(w4_gemm(a, b, out_dtype=torch.float32, **STREAM, **options))
    assert all(same_bits(results[0], again) for again in results[1:])


@pytest.mark.parametrize("m", [8, 16])
@pytest.mark.parametrize("sms", [1, 2, 4, 132])
def test_a_token_has_the_same_bits_at_every_place_of_a_dense_batch(m, sms):
    make = maker(m)
    a, b = make.randn(m, 2560), make.tiles(48, 2560)
    order = make.permutation(m).long()
    a[3] = a[1]
    with emulated(sms=sms):
        whole, moved = (
            w4_gemm(x, b, out_dtype=torch.float32, **STREAM) for x in (a, a[order].contiguous())
        )
    assert same_bits(whole[order], moved) and same_bits(whole[1], whole[3])
