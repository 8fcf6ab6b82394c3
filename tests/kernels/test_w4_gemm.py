"""w4_gemm for many tokens in the emulator, by configuration: exact sums whoever shares K, experts,
epilogues, numbers that are none, the same bits again, what it touches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.checks.inputs import Maker
from bench.checks.kernel_checks import device_error, same_bits
from l4kernels import STATUS, ops
from l4kernels.bench.counters import count
from l4kernels.ops import w4_gemm
from l4kernels.testing import assert_close, chained, emulated, relative_error
from tools.gemm_configs import W4GemmConfig, w4_gemm_configs

pytestmark = pytest.mark.skipif(
    "w4_gemm" not in STATUS.kernels, reason=STATUS.reason or "no kernel"
)

MODES = ("late", "early", "random")
CONFIGS = w4_gemm_configs()
FORMATS = [(group, zeros) for group in (128, 64, 32) for zeros in (False, True)]
EDGES = [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
"""Rows per expert around every size of a tile."""
F32 = torch.float32
NAN, INF = float("nan"), float("inf")
each_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


def maker(seed: int = 0) -> Maker:
    return Maker("cpu", torch.bfloat16, seed)


def weights(
    make: Maker, *shape: int, group: int = 128, zeros: bool = False, greatest: int = 0
) -> Tensor:
    """Tiles `[(E,) N, K]` of every code; scales are powers of two of both signs, to 2^greatest."""
    *rows, k = shape
    powers = 2.0 ** make.integers(*rows, k // group, low=greatest - 3, high=greatest + 1)
    signs = make.integers(*powers.shape, high=2) * 2 - 1
    points = make.integers(*powers.shape, high=16, dtype=torch.uint8) if zeros else None
    codes = ops.pack_int4(make.integers(*shape, low=-8, high=8))
    return ops.tile_int4(codes, (powers * signs).bfloat16(), points)


def rows(make: Maker, m: int, k: int) -> Tensor:
    """Small integers: with `weights`, float32 sums are exact in any order."""
    return make.integers(m, k, low=-4, high=5).bfloat16()


def run(config: W4GemmConfig, a: Tensor, b: Tensor, **options: Any) -> Tensor:
    return w4_gemm(a, b, config=config.number + 1, **{"out_dtype": F32, **options})


def check_exact(
    config: W4GemmConfig, a: Tensor, b: Tensor, options: dict[str, Any] | None = None, **settings
) -> None:
    options = options or {}
    with emulated(**settings):
        got = run(config, a, b, **options)
    assert torch.equal(got, w4_gemm.reference(a, b, out_dtype=F32, **options))
    assert device_error() == ""


@each_config
@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_tokens_is_exact(config, mode):
    """N ends inside a tile of rows, K wraps the ring."""
    for m in (*range(18), 31, 33, 64, 65, 129, 200):
        make = maker(m)
        group, zeros = FORMATS[m % 6]
        n, k = ((144, 1152), (16, 128), (272, 384))[m % 3]
        b = weights(make, n, k, group=group, zeros=zeros)
        check_exact(config, rows(make, m, k), b, mode=mode, seed=m, sms=(1, 2, 4, 7)[m % 4])


@each_config
@pytest.mark.parametrize("group, zeros", FORMATS)
def test_tiles_of_every_format_are_exact(config, group, zeros):
    """Scales below 2 ride in the conversion, greater ones do not."""
    for seed, mode in enumerate(MODES):
        for greatest in (0, 1, 4):
            make = maker(group + seed)
            b = weights(make, 144, 640, group=group, zeros=zeros, greatest=greatest)
            check_exact(config, rows(make, 37, 640), b, mode=mode, seed=seed, sms=3)


@each_config
@pytest.mark.parametrize("zero", range(16))
def test_every_code_less_every_zero_point_is_exact(config, zero):
    """Row by row: one of A is 1, and each of the 16 codes stands in each field of a word."""
    codes = (torch.arange(128) + torch.arange(16)[:, None]) % 16
    points = torch.full((16, 1), zero, dtype=torch.uint8)
    packed, scales = ops.pack_int4(codes - 8), torch.ones(16, 1).bfloat16()
    eye = torch.eye(128).bfloat16()
    for b in (
        ops.tile_int4(packed, scales, points),
        *([ops.tile_int4(packed, scales)] * (zero == 8)),
    ):
        with emulated():
            got = run(config, eye, b)
        assert torch.equal(got, (codes - zero).float().T)


@each_config
@pytest.mark.parametrize("sms", [1, 2, 3, 5, 7, 132])
def test_sums_of_several_ctas_are_exact(config, sms):
    """Of one tile and of a few, whose K two CTAs or many share."""
    for n, k in ((128, 5120), (2 * config.block_n, 2688), (640, 1408)):
        make = maker(n + sms)
        b = weights(make, n, k)
        check_exact(config, rows(make, 19, k), b, mode="random", seed=sms, sms=sms)


EPILOGUES = {
    "bias gelu": {"bias": True, "activation": "gelu"},
    "swiglu": {"activation": "swiglu", "row_scale": True},
    "swiglu bias residual": {"activation": "swiglu", "bias": True, "residual": True},
    "residual": {"residual": True},
    "all of none": {"row_scale": True, "bias": True, "residual": True},
}


@each_config
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, F32], ids=str)
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(config, name, out_dtype):
    """Of whole tiles, of tiles that end early, of sums that meet."""
    for m, n, k, sms in ((150, 272, 256, 2), (20, 208, 2304, 5)):
        make = maker(m)
        a, b = make.randn(m, k), make.tiles(n, k)
        options = dict(EPILOGUES[name])
        columns = n // 2 if options.get("activation") == "swiglu" else n
        given = {
            "bias": make.randn(n),
            "residual": make.randn(m, columns + 8)[:, :columns],
            "row_scale": make.uniform(m, low=-1),
        }
        options |= {key: value for key, value in given.items() if key in options}
        with emulated(sms=sms):
            got = run(config, a, b, out_dtype=out_dtype, **options)
        expected = w4_gemm.reference(a, b, out_dtype=out_dtype, **options)
        assert_close(got, expected, 4e-3)


COUNTS = {
    "every edge": EDGES,
    "one takes all": [0, 0, 140, 0],
    "one each": [1] * 17,
    "127 of 128 are empty": [0] * 77 + [12] + [0] * 50,
    "more than a warp scans": [i % 2 for i in range(70)],
    "none": [0, 0, 0],
}


@each_config
@pytest.mark.parametrize("name", COUNTS)
def test_experts_of_every_size_are_exact(config, name):
    """Rows that no expert owns are NaN, and their results zero."""
    for tail, mode in zip((0, 5, 3), MODES, strict=True):
        counts = COUNTS[name]
        make, m = maker(len(counts)), sum(counts) + tail
        a, b = rows(make, m, 384), weights(make, len(counts), 48, 384)
        a[sum(counts) :] = NAN
        options = {"expert_offsets": make.offsets(counts), "row_scale": torch.full((m,), 0.5)}
        with emulated(mode=mode, seed=7, sms=5):
            got = run(config, a, b, **options)
        a[sum(counts) :] = 0
        assert torch.equal(got, w4_gemm.reference(a, b, out_dtype=F32, **options))
        assert not got[sum(counts) :].any() and device_error() == ""


HOSTILE = {
    "descending": [0, 12, 5, 20, 24],
    "beyond M": [0, 9, 2**31 - 1, 20, 24],
    "negative": [0, -5, 3, 7, 99],
    "not from 0": [3, 9, 9, 20, 24],
    "the smallest number": [-(2**31), -(2**31), 24, -(2**31), 2**31 - 1],
}


@each_config
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_offsets_are_clamped_and_reported(config, name):
    """Each row comes out as some expert's product, or as zeros."""
    make, m = maker(2), 24
    a, b = rows(make, m, 640), weights(make, 4, 32, 640)
    device_error()
    with emulated(mode="random", seed=2, sms=3):
        got = run(config, a, b, expert_offsets=make.tensor(HOSTILE[name]))
    assert device_error() == "w4_gemm: expert_offsets"
    ends = torch.tensor(HOSTILE[name][1:]).clamp(0, m).cummax(0).values
    owner = torch.searchsorted(ends, torch.arange(m), right=True)
    each = [w4_gemm.reference(a, expert, out_dtype=F32) for expert in b]
    each.append(torch.zeros_like(each[0]))
    assert torch.equal(got, torch.stack([each[e][row] for row, e in enumerate(owner.tolist())]))


@each_config
def test_error_is_at_most_twice_that_of_a_bf16_product_of_the_same_weights(config):
    make = maker(config.number)
    a, weight = make.randn(70, 1024), make.int4(144, 1024)
    dequantised = ops.dequantize_int4(weight.packed, weight.scales).double()
    exact = a.double() @ dequantised.T
    theirs = relative_error(a @ dequantised.bfloat16().T, exact)
    with emulated():
        got = run(config, a, ops.tile_int4(*weight), out_dtype=torch.bfloat16)
    assert relative_error(got, exact) <= 2 * theirs


@each_config
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_number_that_is_none_stays_in_its_row_or_column(config, bad):
    make, m = maker(1), 21
    for group, zeros in ((128, False), (32, True)):
        a, b = rows(make, m, 640), weights(make, 64, 640, group=group, zeros=zeros)
        expected = w4_gemm.reference(a, b, out_dtype=F32)
        packed, scales, points = ops.untile_int4(b)
        wrong = a.clone()
        wrong[m - 2, 500] = bad
        scales[19, 0] = bad
        with emulated(sms=5):
            of_a = run(config, wrong, b)
            of_scales = run(config, a, ops.tile_int4(packed, scales, points))
        theirs = w4_gemm.reference(wrong, b, out_dtype=F32)
        assert torch.equal(of_a.nan_to_num(0, 1, -1), theirs.nan_to_num(0, 1, -1))
        assert not of_a[m - 2].isfinite().any() and not of_scales[:, 19].isfinite().any()
        kept = torch.arange(64) != 19
        assert torch.equal(of_scales[:, kept], expected[:, kept])


@each_config
@pytest.mark.parametrize("m", [19, 150])
def test_a_row_has_the_same_bits_on_every_run_and_at_every_place(config, m):
    make = maker(m)
    a, b = make.randn(m, 1408), make.tiles(640, 1408)
    order = make.permutation(m).long()
    a[3] = a[m - 1]
    results = []
    for seed in range(3):
        with emulated(mode="random", seed=seed, sms=4):
            results += [run(config, a, b)[order], run(config, a[order].contiguous(), b)]
    assert all(same_bits(results[0], again) for again in results[1:])
    back = torch.empty_like(results[0])
    back[order] = results[0]
    assert same_bits(back[3], back[m - 1])


@each_config
@pytest.mark.parametrize("static", [False, True])
def test_chains_of_launches_are_exact(config, static):
    """The second product starts under the first, whose result it takes; weights may come before."""
    make = maker(3)
    a, b, c = rows(make, 40, 384), weights(make, 256, 384), weights(make, 144, 256)
    first = w4_gemm.reference(a, b).bfloat16()
    wanted = w4_gemm.reference(first, c, out_dtype=F32)
    for mode in MODES:
        with emulated(mode=mode, seed=1, sms=3), chained():
            got = run(config, a, b, out_dtype=torch.bfloat16, static_weights=static)
            got = run(config, got, c, static_weights=static)
        assert_close(got, wanted, 1e-6)


def test_what_is_chosen_is_right():
    """config -1, from the row on where weights no longer stream."""
    for m in (17, 40, 70, 130):
        make = maker(m)
        a, b = rows(make, m, 640), weights(make, 144, 640)
        with emulated(sms=3):
            got = w4_gemm(a, b, out_dtype=F32)
        assert torch.equal(got, w4_gemm.reference(a, b, out_dtype=F32))


def loaded_bytes(config: W4GemmConfig, m: int, n: int, k: int) -> int:
    """Of the wave model: every tile loads its weights and its tokens."""
    tiles = (m // config.block_m) * (n // config.block_n)
    return tiles * k // 128 * (config.block_n // 16 * 1056 + config.block_m * 256)


@each_config
@pytest.mark.parametrize("activation", ["none", "swiglu"])
def test_full_tiles_move_what_the_wave_model_says(config, activation):
    m, n, k = 256, 512, 1024
    make = maker()
    options = {"config": config.number + 1, "activation": activation}
    counters = count("w4_gemm", (make.randn(m, k), make.tiles(n, k)), options, sms=4)
    modelled = loaded_bytes(config, m, n, k) + 2 * m * n // (2 if activation == "swiglu" else 1)
    assert counters.touched_bytes <= 1.02 * counters.needed_bytes, counters
    assert counters.requested_bytes <= 1.05 * modelled, counters
    assert counters.bank_conflicts == 0 and counters.launches == 1, counters
    assert counters.tensor_flop <= 1.02 * counters.needed_flop, counters


@each_config
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, F32], ids=str)
def test_no_epilogue_has_bank_conflicts(config, out_dtype):
    make, m, n, k = maker(), 128, 256, 256
    options = {"config": config.number + 1, "out_dtype": out_dtype, "row_scale": make.uniform(m)}
    for more in ({"residual": make.randn(m, n)}, {"activation": "gelu"}, {"activation": "swiglu"}):
        args = make.randn(m, k), make.tiles(n, k, group=32, zeros=True)
        counters = count("w4_gemm", args, options | more, sms=4)
        assert counters.bank_conflicts == 0, (more, counters)


@each_config
def test_shared_tiles_read_nothing_twice(config):
    make, m, n, k = maker(), min(config.block_m, 32), 640, 2048
    options = {"config": config.number + 1, "static_weights": True}
    counters = count("w4_gemm", (make.randn(m, k), make.tiles(n, k)), options, sms=4)
    assert counters.bank_conflicts == 0 and counters.launches == 1, counters
    sums = 2 * 2 * 4 * config.block_m * config.block_n * 4  # two slots a CTA, written and read
    assert counters.touched_bytes <= 1.02 * counters.needed_bytes + sums, counters
