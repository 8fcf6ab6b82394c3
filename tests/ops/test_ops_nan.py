"""NaN in, NaN or an error out: a value that is not finite goes into each argument of each op, on
the references and on the kernels. What is finite then is right; nothing else is lost or touched."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.cases import cases
from bench.checks.inputs import FP8, Case, Maker
from bench.checks.kernel_checks import device_error, mutated, tensors
from l4kernels import STATUS, ops
from l4kernels.testing import emulated
from tests.support import naive

FLOATS = [
    name
    for name in ops.OPS
    if name not in ("word_sum", "advance_step", "quantize_int4", "sample")
    and not name.endswith("_plan")
]  # words; integers; naive loops without search; rules of its own: test_ops_sample.py; integers
KERNELS = [name for name in FLOATS if name in STATUS.kernels]
# Queries that are computed together may all be NaN where one sees a value of NaN.
SPREADS = {
    *((op, "v_cache") for op in ("flash_prefill", "flash_decode", "flash_decode_append")),
    ("flash_decode_append", "qkv"),
}
SLACK = {torch.float32: 1e-3, torch.bfloat16: 2**-6, FP8: 2**-3}
NAN, INF = float("nan"), float("inf")


LENGTHS = ((1, 1), (5, 5), (3, 20), (40, 40), (16, 300))


def attention_cases(make: Maker, name: str, most: int) -> Iterator[Case]:
    """One query, a short sequence, 40 rows, a long one; beside each a sequence that stays clean."""
    lengths = [pair for pair in LENGTHS if pair[0] <= 16 or name == "flash_prefill"]
    if name == "flash_decode_append":
        lengths = lengths[:2]  # loops over every head take their time
    for new, keys in lengths[1::2] if most < 4 else lengths:
        k, v = (make.randn(2 * 20, 16, 2, 128) for _ in "kv")
        table, lengths = make.permutation(40).view(2, 20), make.tensor([keys, keys])
        options = {"softmax_scale": 0.1}
        if new == 5:
            k, v = k.to(FP8), v.to(FP8)
            options |= {"k_scale": make.uniform(2, low=0.5), "v_scale": make.uniform(2, low=0.5)}
        if name == "flash_prefill":
            q, starts = make.randn(2 * new, 4, 128), make.offsets([new, new])
            args = (q, k, v, starts, lengths, table)
            options["max_seqlen_q"] = new
        elif name == "flash_decode_append":
            at = torch.arange(keys - new, keys).repeat(2)
            slots = table[:, at[:new] // 16].flatten() * 16 + at % 16
            options |= {"num_heads": 4, "tokens": new, "cos_sin": ops.rope_table(8, theta=1e4)}
            args = (make.randn(2 * new, 8 * 128), at, slots.long(), k, v, lengths, table)
        else:
            args = (make.randn(2, new, 4, 128), k, v, lengths, table)
        yield Case(f"{new} of {keys}", args, options)


def small_cases(name: str, dtype: torch.dtype, most: int) -> list[Case]:
    """A few of the op's cases, the smallest, of different kinds."""
    if name.startswith("flash"):
        return list(attention_cases(Maker("cpu", dtype, 7), name, most))
    found = [c for c in cases(name, dtype=dtype) if 0 < c.args[0].numel() <= 9_000]
    return found[:: -(-len(found) // most)]


def poisoned(case: Case, value: float, places: int) -> Iterator[tuple[str, Case]]:
    """The case with `value` at one place of one argument: in the middle, at either end."""
    for name in [*range(len(case.args)), *case.kwargs]:
        t = case.args[name] if isinstance(name, int) else case.kwargs[name]
        if not isinstance(t, Tensor) or not t.is_floating_point() or not t.numel():
            continue
        if t.dtype == FP8 and value == value:
            continue  # there is no such code
        for place in [t.numel() // 2, 0, t.numel() - 1][:places]:
            own = case.copy()
            mine = own.args[name] if isinstance(name, int) else own.kwargs[name]
            mine[tuple(int(i) for i in np.unravel_index(place, t.shape))] = value
            yield name, own


def argument(op: ops.Op, name: Any) -> str:
    return list(op.signature.parameters)[name] if isinstance(name, int) else name


def everything(op: ops.Op, call: Any, case: Case) -> list[Tensor]:
    own = case.copy()
    results = [*tensors(call(*own.args, **own.kwargs)), *(t for _, t in mutated(op.name, own))]
    return meant(op.name, results)


def meant(name: str, results: list[Tensor]) -> list[Tensor]:
    """Codes beside an infinite scale, be they 0 or NaN, mean NaN."""
    if name.endswith("_fp8") and name != "quantize_fp8":
        at = name.startswith("moe_combine")  # after the residual stream
        q, scale = results[at], results[at + 1].view(len(results[at]), -1)
        scale = scale.repeat_interleave(q.shape[1] // scale.shape[1], 1)
        results[at] = q.double().masked_fill(~scale.isfinite(), NAN).to(q.dtype)
    return results


def check(got: Tensor, exact: Tensor, value: float, spreads: bool, what: str) -> None:
    assert got.shape == exact.shape, what
    if not got.is_floating_point():
        assert torch.equal(got.long(), exact.long()), what
        return
    a, e = got.double(), exact.double()
    finite = a.isfinite()
    assert e[finite].isfinite().all(), f"{what}: a plausible number instead of {e[finite]}"
    if value != value and not spreads:
        assert torch.equal(a.isnan(), e.isnan()), f"{what}: {a.isnan().sum()} are NaN"
    slack = SLACK[got.dtype]
    torch.testing.assert_close(a[finite], e[finite], rtol=slack, atol=slack, msg=lambda m: what + m)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", FLOATS)
def test_reference_is_what_arithmetic_says(name, value):
    op, places = ops.OPS[name], 0
    for case in small_cases(name, torch.float32, 4):
        for where, dirty in poisoned(case, value, 2):
            own = dirty.copy()
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                exact = getattr(naive, name)(*own.args, **own.kwargs)
            exact = meant(name, [torch.from_numpy(np.asarray(result)) for result in exact])
            spreads = (name, argument(op, where)) in SPREADS
            for i, (got, wanted) in enumerate(zip(everything(op, op, dirty), exact, strict=True)):
                what = f"{case}, {argument(op, where)} is {value}, result {i}: "
                check(got, wanted, value, spreads, what)
            places += 1
    assert places or name == "mma_tile"


@pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_loses_no_more_than_its_reference(name):
    op = ops.OPS[name]
    for case in small_cases(name, torch.bfloat16, 3):
        for value in (NAN, INF):
            for where, dirty in poisoned(case, value, 1):
                wanted = everything(op, op.reference, dirty)
                with emulated():
                    found = everything(op, op, dirty)
                reported = device_error()
                assert not reported or name in ("moe_route", "moe_router")
                spreads = (name, argument(op, where)) in SPREADS
                for i, (got, exact) in enumerate(zip(found, wanted, strict=True)):
                    what = f"{case}, {argument(op, where)} is {value}, result {i}: "
                    check(got, exact, value, spreads, what)


def routes() -> list[Any]:
    """The references, and the kernels where they are."""
    return [contextlib.nullcontext, *[emulated] * STATUS.loaded]


@pytest.mark.parametrize("route", routes())
@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_a_query_that_weighs_nothing_is_not_one_that_sees_nothing(route, tokens):
    """All scores -inf: 0 / 0. The same query at a position before the first key gives 0."""
    make = Maker("cpu", torch.bfloat16, 3)
    k, v, table = (
        torch.ones(1, 64, 1, 128).bfloat16(),
        make.randn(1, 64, 1, 128),
        make.tensor([[0]]),
    )
    for keys in (tokens, 0):
        q = torch.full((tokens, 2, 128), -INF).bfloat16()
        with route():
            out, lse = ops.flash_prefill(
                q, k, v, make.offsets([tokens]), make.tensor([keys]), table,
                softmax_scale=0.1, max_seqlen_q=tokens,
            )  # fmt: skip
            found = [(out, lse)]
            if tokens <= 16:
                length = make.tensor([keys])
                found.append(ops.flash_decode(q[None], k, v, length, table, softmax_scale=0.1))
        for out, lse in found:
            assert (out.isnan() if keys else out == 0).all()
            assert (lse == -INF).all()


@pytest.mark.parametrize("route", routes())
def test_a_part_that_weighs_next_to_nothing_is_not_one_without_keys(route):
    outs, lses = torch.ones(2, 1, 1, 128).bfloat16(), torch.tensor([0.0, 500.0]).view(2, 1, 1)
    outs[0] = NAN
    with route():
        assert ops.merge_attention_states(outs, lses).out.isnan().all()
        assert (
            ops.merge_attention_states(outs, lses + torch.tensor([-INF, 0]).view(2, 1, 1))
            .out.eq(1)
            .all()
        )


@pytest.mark.parametrize("route", routes())
@pytest.mark.parametrize("fp8", [False, True])
def test_a_row_of_nan_goes_through_the_experts_alone(route, fp8):
    make = Maker("cpu", torch.bfloat16, 3)
    x, router = make.randn(6, 128), make.randn(8, 128)
    w13, w2 = make.randn(4, 256, 128, scale=0.1), make.randn(4, 128, 128, scale=0.1)
    scales = {}
    if fp8:
        (w13, s13), (w2, s2) = (ops.quantize_fp8.reference(w, "row") for w in (w13, w2))
        scales = {"w13_scale": s13, "w2_scale": s2}
    clean = l4kernels.moe_ffn(x, router, w13, w2, top_k=2, **scales)
    x[2, 5] = NAN
    with route():
        out = l4kernels.moe_ffn(x, router, w13, w2, top_k=2, **scales)
    if route is emulated:
        assert device_error() == "moe_route: logits (NaN)"
    assert out[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(out[others], clean[others], rtol=0.05, atol=0.05)


def test_int4_groups_of_nan_have_a_scale_of_nan():
    w = torch.randn(2, 3, 256)
    clean = ops.dequantize_int4(*ops.quantize_int4(w))
    w[1, 2, 130] = NAN
    for search in (False, True):
        values = ops.dequantize_int4(*ops.quantize_int4(w, search))
        assert values[1, 2, 128:].isnan().all() and values.isnan().sum() == 128
    assert torch.equal(values[0], clean[0])
