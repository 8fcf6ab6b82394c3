"""What an MoE layer of few tokens does in fewer launches, in the emulator: products that gather
their rows, and the sum of a token's rows with the next norm. Bits are those of the ops that they
replace."""

from typing import Any

import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.edges_w4 import exact_rows, exact_tiles
from bench.checks.inputs import I32, Maker
from bench.checks.kernel_checks import device_error, same_bits, tensors
from l4kernels import STATUS, ops
from l4kernels.bench.counters import count
from l4kernels.ops.epilogue import MAX_GATHERED_ROWS
from l4kernels.testing import assert_close, chained, emulated
from tools.gemm_configs import STREAM

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")

MODES = ("late", "early", "random")
PRODUCTS = {"gemm": {"config": STREAM}, "w4_gemm": {"config": 0}}
FORMS = pytest.mark.parametrize("form", PRODUCTS)


def maker(seed: int = 0) -> Maker:
    return Maker("cpu", torch.bfloat16, seed)


def operands(make: Maker, form: str, tokens: int, experts: int, k: int) -> tuple[Tensor, Tensor]:
    """Tokens, and weights of the experts and the shared one, whose sums are exact."""
    if form == "w4_gemm":
        return exact_rows(make, tokens, k), exact_tiles(make, experts + 1, 48, k)
    shapes = (tokens, k), (experts + 1, 48, k)
    a, b = (make.integers(*s, low=-3, high=4).bfloat16() for s in shapes)
    return a, b


def routed(
    make: Maker, tokens: int, experts: int, top_k: int
) -> tuple[ops.Routing, dict[str, Any]]:
    routing = ops.moe_route(make.randn(tokens, experts, dtype=torch.float32), top_k, True)
    experts = {"expert_offsets": routing.expert_offsets, "out_dtype": torch.float32}
    return routing, experts


# Tokens, experts, choices, K: one of a few, the most rows, K in slices, K that ends inside a unit.
SIZES = ((1, 16, 1, 5120), (2, 1, 1, 640), (16, 4, 1, 5120), (10, 5, 2, 384), (3, 9, 8, 256))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@FORMS
def test_a_product_that_gathers_has_the_bits_of_one_of_permuted_rows(form, size, mode):
    tokens, experts, top_k, k = size
    make, op = maker(k + tokens), ops.OPS[form]
    a, b = operands(make, form, tokens, experts, k)
    routing, options = routed(make, tokens, experts, top_k)
    options |= {"row_scale": routing.row_scale, "activation": "swiglu"}
    order = {"permutation": routing.permutation, "top_k": top_k + 1}
    with emulated(mode=mode, seed=tokens, sms=3, perturb=False):
        got = op(a, b, **order, **options)
        rows = ops.moe_permute(a, *order.values())
        wanted = op(rows, b, **options, **PRODUCTS[form])
    assert device_error() == "" and same_bits(got, wanted)
    assert_close(got, op.reference(a, b, **order, **options), 1e-5)


@pytest.mark.parametrize("mode", MODES)
@FORMS
def test_rows_are_those_of_any_order_however_far_apart(form, mode):
    """Rows inside of a wider tensor, in an order of no router; beside them NaN."""
    make, op = maker(7), ops.OPS[form]
    a, b = operands(make, form, 9, 2, 256)
    wide = torch.full((9, 320), torch.nan).bfloat16()
    wide[:, 16:272] = a
    options = {"expert_offsets": make.offsets([4, 0, 3]), "out_dtype": torch.float32}
    order = torch.tensor([8, 8, 0, 5, 5, 5, 8, 1, 2], dtype=I32)
    with emulated(mode=mode, sms=2):
        got = op(wide[:, 16:272], b, permutation=order, **options)
    assert torch.equal(got, op.reference(a, b, permutation=order, **options))
    assert device_error() == ""


@pytest.mark.parametrize("mode", MODES)
@FORMS
def test_an_index_outside_is_a_row_of_zeros_and_reported(form, mode):
    """Of slices as well, with NaN in what a CTA's memory held before."""
    make, op = maker(3), ops.OPS[form]
    a, b = operands(make, form, 8, 1, 5120)
    routing, options = routed(make, 8, 1, 1)
    wrong = routing.permutation.clone()
    bad = [0, 9, 15]
    wrong[bad] = torch.tensor([-1, 16, 2**31 - 1], dtype=I32)
    nans = torch.full_like(a, torch.nan)
    with emulated(mode=mode, sms=2, perturb=False):
        op(nans, b, permutation=routing.permutation, top_k=2, **options)
        good = op(a, b, permutation=routing.permutation, top_k=2, **options)
        assert device_error() == ""
        got = op(a, b, permutation=wrong, top_k=2, **options)
    assert device_error() == f"{form}: permutation"
    kept = [i for i in range(16) if i not in bad]
    assert not got[bad].any() and torch.equal(got[kept], good[kept])


@FORMS
def test_a_binding_gathers_for_the_streaming_kernel_alone(form):
    """The limit of Python is that of C++, and each refusal says what to do."""
    make, op = maker(), ops.OPS[form]
    a, b = operands(make, form, 33, 1, 128)
    binding = getattr(torch.ops.l4kernels_emulated, form).default
    on_cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def refused(match: str, rows: int, **changed: Any) -> None:
        options = {
            "expert_offsets": make.offsets([0, rows]),
            "permutation": torch.arange(rows, dtype=I32),
        }
        with emulated(), pytest.raises(RuntimeError, match=f"l4kernels.{form}: expected {match}"):
            binding.redispatch(on_cpu, a[:rows], b, **{**options, **changed})

    most = MAX_GATHERED_ROWS
    refused(rf"at most {most} rows of permutation, got {most + 1}; call moe_permute", most + 1)
    refused("expert_offsets with permutation, got none", 4, expert_offsets=None)
    refused(r"config .*-1.* with permutation, got 1", 4, config=1)
    with emulated():
        order = {"permutation": torch.arange(most, dtype=I32)}
        op(a[:most], b, expert_offsets=make.offsets([0, most]), **order)


def test_every_width_of_a_model_has_room_for_the_rows_that_a_layer_gathers():
    """The widest that a norm takes; a layer asks for nothing but the number of rows."""
    make, k = maker(), 16_384
    rows, experts = MAX_GATHERED_ROWS, 4
    a, tiles = exact_rows(make, rows, k), exact_tiles(make, experts, 16, k)
    b = make.integers(experts, 16, k, low=-1, high=2).bfloat16()
    order = {"permutation": make.permutation(rows), "expert_offsets": make.offsets([16, 1, 8, 7])}
    for op, weight in ((ops.w4_gemm, tiles), (ops.gemm, b)):
        with emulated(sms=4):
            got = op(a, weight, out_dtype=torch.float32, **order)
        assert torch.equal(got, op.reference(a, weight, out_dtype=torch.float32, **order))


@FORMS
def test_a_gathered_row_is_read_once_for_each_item(form):
    """Rows of a token are one in memory; from L2 a CTA takes each of its items' rows once."""
    make = maker()
    routing, options = routed(make, 4, 4, 1)
    a, b = operands(make, form, 4, 4, 2560)
    options |= {"permutation": routing.permutation, "top_k": 2}
    c = count(form, (a, b), options, sms=3)
    assert c.touched_bytes <= 1.03 * c.needed_bytes and c.bank_conflicts == 0, str(c)
    assert c.requested_bytes <= 1.02 * c.needed_bytes + 3 * 2 * a.nbytes and c.launches == 1, str(c)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokens, width", [(1, 5120), (5, 16_384), (9, 8), (300, 264)])
def test_the_sum_and_its_norm_have_the_bits_of_both_ops(tokens, width, mode):
    make = maker(width)
    y, order = make.randn(2 * tokens, width), make.permutation(2 * tokens)
    weight, residual = make.randn(width), make.randn(tokens, width + 8)[:, :width]
    with emulated(mode=mode, seed=tokens, sms=2, perturb=False):
        x = ops.moe_combine(y, order, 2, residual=residual)
        wanted = x, ops.rms_norm(x, weight, 1e-3)
        coded = x, *ops.rms_norm_fp8(x, weight, 1e-3)[:2]
        got = ops.moe_combine_norm(y, order, 2, weight, 1e-3, residual)
        got_coded = ops.moe_combine_norm_fp8(y, order, 2, weight, 1e-3, residual)
    assert device_error() == ""
    for mine, theirs in ((got, wanted), (got_coded, coded)):
        assert all(same_bits(a, e) for a, e in zip(mine, theirs, strict=True))


def test_a_nan_stays_in_its_token():
    make = maker()
    y, order, weight = make.randn(6, 256), torch.arange(6, dtype=I32), make.randn(256)
    y[3, 5] = torch.nan
    with emulated():
        got = ops.moe_combine_norm(y, order, 2, weight)
        coded = ops.moe_combine_norm_fp8(y, order, 2, weight)
    assert got.normed[1].isnan().all() and not got.normed[[0, 2]].isnan().any()
    assert coded.scale.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["gemm", "w4_gemm"])
def test_the_end_of_a_layer_in_dependent_launches(form, mode):
    """Tokens, order, offsets, rows and the stream are results of the launches before."""
    make, tokens, k = maker(4), 6, 128
    x, weight = make.randn(tokens, k), make.randn(k)
    router = make.randn(8, k)
    shapes = (9, 2 * k, k), (9, k, k)
    first, second = (
        make.tiles(*s) if form == "w4_gemm" else make.randn(*s, scale=k**-0.5) for s in shapes
    )
    product = ops.OPS[form]

    def layer(given: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        normed = ops.rms_norm(x, weight)
        h = given[0] if given else normed
        logits = ops.gemm(h, router, out_dtype=torch.float32)
        route = ops.moe_route(given[1] if given else logits, 1, True)
        routing = given[2] if given else route
        experts = {"expert_offsets": routing.expert_offsets}
        inner = product(
            h, first, **experts, permutation=routing.permutation, top_k=2,
            row_scale=routing.row_scale, activation="swiglu",
        )  # fmt: skip
        outer = product(given[3] if given else inner, second, **experts)
        y = given[4] if given else outer
        last = ops.moe_combine_norm(y, routing.inverse, 2, weight, residual=x)
        return normed, logits, route, inner, outer, last

    with emulated(mode=mode, seed=5, sms=3), chained():
        got = layer()
    with l4kernels.reference():
        expected = layer(got)
    for a, b in zip(got, expected, strict=True):
        for mine, theirs in zip(tensors(a), tensors(b), strict=True):
            assert_close(mine, theirs, 3e-3)
