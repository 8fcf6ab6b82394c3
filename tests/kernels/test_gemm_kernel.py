"""The GEMM in the emulator, configuration by configuration: exactness, promotion, offsets."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.checks.gemm_configs import CONFIGS, EDGES, PLAIN_CONFIGS, Config, config_cases, operands
from bench.checks.inputs import Maker
from bench.checks.kernel_checks import check, device_error, same_bits
from l4kernels import STATUS
from l4kernels.ops import gemm, gemm_swiglu_fp8, interleave_gate_up, quantize_fp8
from l4kernels.testing import assert_close, chained, emulated
from tools.nvcc import ROOT

pytestmark = pytest.mark.skipif("gemm" not in STATUS.kernels, reason=STATUS.reason or "no kernel")

MODES = ("late", "early", "random")
I32 = torch.int32
BF16_CONFIGS = [config for config in PLAIN_CONFIGS if not config.fp8]
PROMOTED_CONFIGS = [config for config in CONFIGS if config.promote]
FAST_CONFIGS = [config for config in CONFIGS if config.fp8 and not config.promote]
HALVED_CONFIGS = [config for config in CONFIGS if config.split_k]
FP8_RESULT_CONFIGS = [config for config in CONFIGS if config.fp8_result]
ROW_CONFIGS = [config for config in PLAIN_CONFIGS if not config.swap]
FAR = "bf16_128x256", "fp8_128x128_1x2_promote", "bf16_swap_16x128", "fp8_swap_16x128_promote"


def maker(seed: int = 0) -> Maker:
    return Maker("cpu", torch.bfloat16, seed)


def check_exact(config: Config, args: tuple[Tensor, Tensor], options: dict, **settings) -> None:
    with emulated(fp8_accumulation="exact", **settings):
        got = gemm(*args, out_dtype=torch.float32, **options)
    assert torch.equal(got, gemm.reference(*args, out_dtype=torch.float32, **options))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", PLAIN_CONFIGS, ids=str)
def test_experts_of_every_awkward_size_are_exact(config, mode):
    """K wraps the ring of stages, N ends inside a tile, every expert ends inside a row tile."""
    make = maker(config.number)
    args, options = operands(make, config, sum(EDGES) + 2, len(EDGES), 136, 640)
    options["expert_offsets"] = make.offsets(EDGES)
    check_exact(config, args, options, mode=mode, seed=config.number, sms=3)


@pytest.mark.parametrize("op", ["gemm", "gemm_swiglu_fp8"])
def test_the_cases_that_a_gpu_runs_for_every_config(op):
    for case in config_cases(op, "cpu"):
        with emulated():
            check(op, case)


@pytest.mark.parametrize("config", PLAIN_CONFIGS, ids=str)
def test_dense_products_are_exact(config):
    for m in (1, 17, 300, 1000):  # pairs: tail tiles, both kinds, ordinary ones
        args, options = operands(maker(m), config, m, 264, 384)
        check_exact(config, args, options, sms=4)


@pytest.mark.parametrize("k", [5120, 8192, 16384, 26624])
@pytest.mark.parametrize("config", [c for c in PLAIN_CONFIGS if c.block_n % 128 == 0], ids=str)
def test_a_tile_of_full_depth_is_exact(config, k):
    """K of Scout and Maverick (hidden, FFN) and of the Behemoth estimate; other widths have the
    same main loop."""
    args, options = operands(maker(k), config, 9, 128, k)
    check_exact(config, args, options, sms=2)


@pytest.mark.parametrize("sms", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("config", [config for config in CONFIGS if config.swap], ids=str)
def test_splits_of_k_add_up_in_one_order(config, sms):
    """The more SMs for one tile, the more splits: see tests/host/test_gemm_configs.cpp."""
    args, options = operands(maker(sms), config, 13, 128, 1920)
    check_exact(config, args, options, sms=sms)
    random = torch.randn(13, 1920), torch.randn(128, 1920)
    args = tuple(t.to(config.dtype) for t in random)
    results = []
    for seed in range(3):
        with emulated(mode="random", seed=seed, sms=sms):
            results.append(gemm(*args, **options))
    assert all(same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("splits", [1, 2, 3, 5, 8])
def test_splits_that_are_asked_for(splits):
    for config in (c for c in CONFIGS if c.swap):
        args, options = operands(maker(splits), config, 13, 128, 1024)
        options["config"] += 100 * splits
        check_exact(config, args, options, sms=8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", HALVED_CONFIGS, ids=str)
def test_halves_of_k_add_up_in_one_order(config, mode):
    """By two thread blocks, each of which finishes half of the rows; several tiles each."""
    for m in (65, 300):
        args, options = operands(maker(m), config, m, 264, 512)
        options["config"] += 200
        check_exact(config, args, options, mode=mode, sms=4)
    args, options = operands(maker(), config, sum(EDGES) + 2, len(EDGES), 136, 512)
    options |= {"config": 200 + config.number, "expert_offsets": maker().offsets(EDGES)}
    check_exact(config, args, options, mode=mode, sms=3)
    random = tuple(torch.randn(rows, 1024).to(config.dtype) for rows in (140, 136))
    scales = {"sfa": torch.ones(1), "sfb": torch.ones(1)} if config.fp8 else {}
    results = []
    for seed in range(3):
        with emulated(mode="random", seed=seed, sms=4):
            results.append(gemm(*random, config=200 + config.number, **scales))
    assert all(same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("config", HALVED_CONFIGS, ids=str)
def test_halves_of_k_must_be_equal(config):
    args, options = operands(maker(), config, 13, 128, 3 * 128 // config.dtype.itemsize)
    for splits in (2, 3):
        with emulated(), pytest.raises(RuntimeError, match="expected config to be a row for these"):
            gemm(*args, **(options | {"config": 100 * splits + config.number}))


@pytest.mark.parametrize("config", PROMOTED_CONFIGS, ids=str)
def test_scales_of_b_change_inside_a_tile(config):
    """Powers of two, another one for each block: sums of integers stay exact."""
    make = maker()
    (a, b), options = operands(make, config, 70, 2, 528, 256)
    powers = torch.arange(2 * 5 * 2).view(2, 5, 2) % 7 - 3.0
    options |= {"sfa": torch.ones(70, 2), "sfb": torch.exp2(powers)}
    check_exact(config, (a, b), options | {"expert_offsets": make.offsets([3, 67])})


def difference(got: Tensor, expected: Tensor) -> float:
    """1 - cosine-like similarity in float64: 0 when equal."""
    x, y = got.double(), expected.double()
    return float(1 - 2 * (x * y).sum() / (x * x + y * y).sum())


@pytest.mark.parametrize("config", BF16_CONFIGS, ids=str)
def test_bf16_on_random_data(config):
    make = maker()
    a, b = make.randn(70, 1024), make.randn(264, 1024)
    with emulated():
        got = gemm(a, b, config=config.number)
    exact = a.double() @ b.double().T
    assert difference(got, exact) < 1e-5
    rounded = (exact.bfloat16() - exact).abs().max()
    assert (got - exact).abs().max() <= 2 * rounded


class Positive:
    """Positive values, so that what truncation drops adds up instead of cancelling."""

    def __init__(self) -> None:
        make = maker()
        self.a, self.b = (quantize_fp8(make.uniform(rows, 16384), "row") for rows in (16, 128))
        self.exact = self.run(gemm.reference, out_dtype=torch.float32).double()
        self.fast = [self.error(config, "hopper") for config in FAST_CONFIGS]

    def run(self, op: Callable[..., Tensor], **options) -> Tensor:
        (a, sfa), (b, sfb) = self.a, self.b
        return op(a, b, sfa=sfa, sfb=sfb, **options)

    def error(self, config: Config, accumulation: str) -> Tensor:
        with emulated(fp8_accumulation=accumulation):
            return (self.run(gemm, config=config.number) - self.exact).norm()


@pytest.fixture(scope="module")
def positive() -> Positive:
    return Positive()


@pytest.mark.parametrize("config", PROMOTED_CONFIGS, ids=str)
def test_promotion_keeps_what_fast_accumulation_loses(config, positive):
    """The guard of the guard: the test that promoted sums pass, un-promoted ones must fail."""
    bound = 1.2 * positive.error(config, "exact")
    assert positive.error(config, "hopper") <= bound
    assert all(error > bound for error in positive.fast)


@pytest.mark.parametrize("sfa, sfb", [("row", "row"), ("1x128", "128x128"), ("1x128", "row")])
@pytest.mark.parametrize("config", [config for config in CONFIGS if config.fp8], ids=str)
def test_scales_of_every_layout(config, sfa, sfb):
    """Per K block only where sums leave the tensor core; a fast config refuses."""
    make = maker()
    (a, sa), (b, sb) = make.fp8(70, 512, scaling=sfa), make.fp8(3, 272, 512, scaling=sfb)
    options = {"sfa": sa, "sfb": sb, "expert_offsets": make.offsets([3, 0, 66])}
    with emulated():
        if "1x128" in sfa and not config.promote:
            with pytest.raises(RuntimeError, match="expected config to be a row for these"):
                gemm(a, b, config=config.number, **options)
            return
        got = gemm(a, b, config=config.number, **options)
    exact = gemm.reference(a, b, out_dtype=torch.float32, **options)
    assert difference(got, exact) < 1e-3 * (1 if config.promote else 10)


@pytest.mark.parametrize("activation", ["none", "swiglu", "gelu"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_epilogues_of_every_config(config, activation):
    make = maker()
    args, options = operands(make, config, 70, 272, 512)
    columns = 136 if activation == "swiglu" else 272
    options |= {
        "bias": make.randn(272),
        "residual": make.randn(70, columns + 8)[:, :columns],
        "row_scale": make.uniform(70) / 16,
        "activation": activation,
    }
    with emulated(fp8_accumulation="exact"):
        other = not config.swap and config.gelu != (activation == "gelu")
        if other or (activation == "swiglu" and not config.swiglu):
            with pytest.raises(RuntimeError, match="expected config to be a row for these"):
                gemm(*args, **options)
            return
        got = gemm(*args, **options)
    assert_close(got, gemm.reference(*args, **options), 3e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", ROW_CONFIGS, ids=str)
def test_residuals_come_by_tma_or_by_loads(config, mode):
    """Whole tiles, ragged ends, the end of A; rows that overlap; in the result's place."""
    make = maker(config.number)
    args, options = operands(make, config, 560, 2, 272, 256)
    options |= {"expert_offsets": make.offsets([260, 300]), "row_scale": make.uniform(560)}
    apart, same, own = make.randn(560, 280)[:, :272], make.randn(1, 272), make.randn(560, 272)
    for residual, out in ((apart, None), (same.expand(560, 272), None), (own, own)):
        expected = gemm.reference(*args, residual=residual, **options)
        with emulated(fp8_accumulation="exact", mode=mode, seed=config.number, sms=4):
            got = gemm(*args, residual=residual, out=out, **options)
        assert_close(got, expected, 3e-3)


def test_silu_keeps_sixteen_bits():
    """By gates of many sizes and ups of 1; far below zero the result is 0 or next to it."""
    gates = torch.cat([torch.linspace(-80, 80, 481), torch.logspace(-12, 1.9, 200)])
    a, b = torch.zeros(len(gates) + 3, 64).bfloat16(), torch.zeros(16, 64).bfloat16()
    a[:-3, 0], a[:-3, 1] = gates, gates - gates.bfloat16()
    a[-3:, 0] = torch.tensor([-87.0, -100.0, -3e38])
    a[:, 2] = b[:8, 0] = b[:8, 1] = b[8:, 2] = 1
    with emulated():
        got = gemm(a, b, activation="swiglu", out_dtype=torch.float32, config=1)[:, 0].double()
    x = a[:, :2].double().sum(1)
    exact = x / (1 + torch.exp(-x))
    assert ((got - exact).abs() <= 2**-16 * exact.abs())[:-3].all()
    assert ((got - exact).abs() <= 1.1e-36)[-3:].all() and not got.isnan().any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", FP8_RESULT_CONFIGS, ids=str)
def test_swiglu_results_leave_as_fp8_with_the_scales_of_the_reference(config, mode):
    """Two thread blocks share each scale; codes may differ where a value sits on a boundary."""
    make = maker()
    args, options = operands(make, config, 282, 3, 512, 384)
    options |= {"expert_offsets": make.offsets([21, 0, 260]), "row_scale": make.uniform(282) / 64}
    with emulated(fp8_accumulation="exact", mode=mode, sms=5):
        got = gemm_swiglu_fp8(*args, **options)
    expected = gemm_swiglu_fp8.reference(*args, **options)
    assert_close(got.scale, expected.scale, 1e-5)
    assert_close(got.q, expected.q, 1e-5)
    assert not got.q[281].float().any() and (got.scale[281] == 1).all()
    with pytest.raises(RuntimeError, match="expected config to be a row for these"), emulated():
        gemm_swiglu_fp8(*args, **(options | {"config": FAST_CONFIGS[0].number}))


@pytest.mark.parametrize("config", [c for c in PLAIN_CONFIGS if c.swiglu], ids=str)
def test_the_router_score_scales_the_input_of_the_expert(config):
    """As in the model; scaling the output instead is another function (a negative control)."""
    make = maker()
    args, options = operands(make, config, 20, 256, 256)
    score = make.uniform(20, low=0.1, high=0.5) / 16
    with emulated(fp8_accumulation="exact"):
        got = gemm(*args, row_scale=score, activation="swiglu", **options)
    gate, up = (args[1].float().view(16, 2, 8, 256)[:, i].reshape(128, 256) for i in (0, 1))
    assert torch.equal(interleave_gate_up(gate, up), args[1].float())
    scaled = args[0].double() * score[:, None].double()
    expected = torch.nn.functional.silu(scaled @ gate.double().T) * (scaled @ up.double().T)
    assert_close(got.float(), expected.float(), 3e-3)
    on_output = gemm.reference(*args, activation="swiglu", **options) * score[:, None]
    with pytest.raises(AssertionError):
        assert_close(got, on_output, 0.1)


@pytest.mark.parametrize("config", PLAIN_CONFIGS, ids=str)
def test_one_expert_takes_all_and_127_of_128_are_empty(config):
    make = maker()
    counts = [0] * 128
    counts[77] = 33
    args, options = operands(make, config, 33, 128, 16, 128)
    check_exact(config, args, options | {"expert_offsets": make.offsets(counts)})


@pytest.mark.parametrize("config", PLAIN_CONFIGS, ids=str)
def test_hostile_offsets_touch_nothing_outside(config):
    """Offsets that do not ascend from 0, or leave the matrix, are clamped and reported."""
    make = maker()
    args, options = operands(make, config, 40, 4, 32, 128)
    device_error()
    for bad in (
        [0, 30, 10, 35, 40],
        [0, 9, 2**31 - 1, 20, 40],
        [0, -5, 3, 7, 99],
        [3, 9, 9, 30, 40],
    ):
        with emulated() as control:
            out = gemm(*args, **(options | {"expert_offsets": make.tensor(bad)}))
            assert control.last_report() is None
        assert device_error() == "gemm: expert_offsets"
        assert out.isfinite().all()


@pytest.mark.parametrize("config", PLAIN_CONFIGS, ids=str)
def test_padding_rows_full_of_nan_do_not_leak(config):
    make = maker()
    (a, b), options = operands(make, config, 50, 2, 64, 256)
    options["expert_offsets"] = make.offsets([17, 20])
    a[37:] = float("nan")
    with emulated(fp8_accumulation="exact"):
        got = gemm(a, b, **options)
    a[37:] = 0
    assert torch.equal(got, gemm.reference(a, b, **options))
    assert not got[37:].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", BF16_CONFIGS, ids=str)
def test_a_chain_of_dependent_launches(config, mode):
    """A, B and the residual may all be results of the launch before."""
    (x, w), options = operands(maker(), config, 64, 64, 64)
    with emulated(mode=mode, sms=2), chained():
        y = gemm(x, w, **options)
        z = gemm(y, w, residual=y, **options)
        last = gemm(x, z, **options)
    y = gemm.reference(x, w, **options)
    z = gemm.reference(y, w, residual=y, **options)
    assert torch.equal(last, gemm.reference(x, z, **options))


def test_rows_may_be_apart_but_not_misaligned():
    make = maker()
    wide = make.randn(20, 272)
    a, b = wide[:, 8:264], make.randn(64, 256)
    with emulated():
        assert_close(gemm(a, b), gemm.reference(a, b), 3e-3)
        with pytest.raises(RuntimeError, match="16-byte aligned"):
            gemm(wide[:, 1:257], b)
        for overlapping in (wide[:1, :256].expand(4, 256), wide.as_strided((4, 256), (128, 1))):
            with pytest.raises(RuntimeError, match="rows of a not to overlap"):
                gemm(overlapping, b)
        with pytest.raises(RuntimeError, match=r"l4kernels.gemm: .* rows of bias .*aligned"):
            gemm(a, b, bias=make.randn(65)[1:])
        (q, scale), (w, scales) = make.fp8(4, 128, scaling="row"), make.fp8(17, 128, scaling="row")
        with pytest.raises(RuntimeError, match="sfb of channels to be 16-byte"):
            gemm(q, w[1:], sfa=scale, sfb=scales[1:])


@pytest.mark.parametrize("config", [config for config in CONFIGS if config.name in FAR], ids=str)
def test_operands_beyond_4_gib(config):
    """Sparse buffers whose last expert, and last rows, begin past 2^31 elements."""
    experts, n, k, m = 256, 65_800, 128, 5
    a, residual = (torch.empty(m, 1 << 29, dtype=d) for d in (config.dtype, torch.bfloat16))
    a, residual = a[:, :k], residual[:, :n]
    b = torch.empty(experts, n, k, dtype=config.dtype)
    small, options = operands(maker(), config, m, 1, n, k)
    a.copy_(small[0])
    b[-1] = small[1][0]
    residual.copy_(maker().integers(m, n, low=-3, high=4))
    options |= {"residual": residual}
    expected = gemm.reference(
        a, small[1], **options, expert_offsets=torch.tensor([0, m], dtype=I32)
    )
    if config.fp8:
        options["sfb"] = torch.ones(experts, 1)
    offsets = torch.tensor([0] * experts + [m], dtype=I32)
    with emulated():
        assert torch.equal(gemm(a, b, expert_offsets=offsets, **options), expected)


def test_a_config_must_fit_the_operands():
    make = maker()
    a, b = make.randn(4, 128), make.randn(16, 128)
    with emulated(), pytest.raises(RuntimeError, match="expected config to be a row for these"):
        gemm(a, b, config=PROMOTED_CONFIGS[0].number)
    with emulated(), pytest.raises(RuntimeError, match=f"a row of 0 to {len(CONFIGS) - 1}"):
        gemm(a, b, config=len(CONFIGS))


def test_the_choice_is_printed_with_its_problem_where_the_environment_asks(capfd):
    with emulated():
        gemm(torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(8, 64, dtype=torch.bfloat16))
    assert "l4kernels.gemm" not in capfd.readouterr().err
    call = """
import torch
from l4kernels.ops import gemm
from l4kernels.testing import emulated
with emulated():
    gemm(torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(8, 64, dtype=torch.bfloat16))
"""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), L4K_LOG="else,gemm")
    done = subprocess.run(
        [sys.executable, "-c", call], env=environment, check=True, capture_output=True, text=True
    )
    line = "l4kernels.gemm: m 1, n 8, k 64, experts 1, bf16 -> stream, splits 1"
    assert done.stderr.splitlines() == [line]
