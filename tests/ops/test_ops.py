"""Every op: equals its naive loops, is a well-formed operator, refuses bad input by name."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.cases import cases
from bench.checks.inputs import FP8, Case
from bench.checks.kernel_checks import mutated, tensors
from l4kernels import ops
from tests.support import naive

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
# Two roundings to bfloat16, not one.
TWO_ROUNDINGS = {
    "rms_norm",
    "add_rms_norm",
    "rms_norm_fp8",
    "moe_combine_norm",
    "moe_combine_norm_fp8",
    "moe_router",
    "flash_decode_append",
}


def run(op: ops.Op, case: Case) -> list[Tensor]:
    case = case.copy()
    result = op(*case.args, **case.kwargs)
    return [*tensors(result), *(t for _, t in mutated(op.name, case))]


def assert_rounded(got: Tensor, exact: np.ndarray, slack: float) -> None:
    """`got` is `exact` after a rounding to its dtype; `slack` is the relative error before it."""
    wanted = torch.from_numpy(np.asarray(exact))
    assert got.shape == wanted.shape
    if not got.is_floating_point():
        assert torch.equal(got.long(), wanted.long())
        return
    half_step = {torch.float32: 0.0, torch.bfloat16: 2**-8, FP8: 2**-4}[got.dtype]
    smallest = 2**-10 if got.dtype == FP8 else 0.0
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=half_step + slack, atol=smallest + slack, equal_nan=True
    )


def test_ops_are_exported_and_have_cases():
    assert set(ops.OPS) <= set(ops.__all__)
    for name in ops.OPS:
        assert len(cases(name)) >= 1 and hasattr(naive, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ops.OPS)
def test_op_equals_naive_loops(name, dtype):
    for case in cases(name, dtype=DTYPES[dtype]):
        if name == "quantize_int4" and case.args[1]:
            continue  # the search has properties of its own: test_ops_quant.py
        if case.name.endswith(("tiny", "huge")):
            continue  # for absolute errors; test_ops_int4_tiles.py
        own = case.copy()
        exact = getattr(naive, name)(*own.args, **own.kwargs)
        results = run(ops.OPS[name], case)
        assert len(results) == len(exact)
        slack = 2**-8 if name in TWO_ROUNDINGS and dtype == "bfloat16" else 2e-5
        for i, (got, wanted) in enumerate(zip(results, exact, strict=True)):
            try:
                assert_rounded(got, wanted, slack)
            except AssertionError as error:
                raise AssertionError(f"{name}, case {case}, result {i}: {error}") from None


@pytest.mark.parametrize("name", ops.OPS)
def test_opcheck(name):
    op = ops.OPS[name]
    chosen = cases(name, dtype=torch.float32)
    for case in chosen[1 :: max(1, len(chosen) // 2)] or chosen:
        tensors = [t for t in (*case.args, *case.kwargs.values()) if isinstance(t, Tensor)]
        # The schema test compares tensors in a way that CPU torch has no float8 kernel for.
        has_fp8 = any(t.dtype == FP8 for t in tensors)
        torch.library.opcheck(
            op.overload,
            case.copy().args,
            case.copy().kwargs,
            test_utils=OPCHECKS[1:] if has_fp8 else OPCHECKS,
        )


@pytest.mark.parametrize("name", ops.OPS)
def test_shape_function_agrees_with_the_body(name):
    for case in cases(name):
        results = run(ops.OPS[name], case)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = Case(
                case.name,
                tuple(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in case.args),
                {k: mode.from_tensor(v) if isinstance(v, Tensor) else v
                 for k, v in case.kwargs.items()},
            )  # fmt: skip
            for got, shaped in zip(results, run(ops.OPS[name], fake), strict=True):
                assert (got.shape, got.dtype) == (shaped.shape, shaped.dtype), case
                assert got.numel() == 0 or got.stride() == shaped.stride(), case


@pytest.mark.parametrize("name", ops.OPS)
def test_inputs_are_left_alone_and_results_repeat(name):
    op = ops.OPS[name]
    for case in cases(name)[-3:]:
        own = case.copy()
        first = op(*own.args, **own.kwargs)
        written = [id(t) for _, t in mutated(name, own)]
        for before, after in zip(case.args, own.args, strict=True):
            if isinstance(before, Tensor) and id(after) not in written:
                assert bits(before) == bits(after)
        again = case.copy()
        with l4kernels.reference():
            second = op(*again.args, **again.kwargs)
        assert type(first) is type(second)
        pairs = zip(tensors(first), tensors(second), strict=True)
        assert all(bits(a) == bits(b) for a, b in pairs)


def bits(t: Tensor) -> bytes:
    return t.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", ops.OPS)
def test_work_is_sane(name):
    for case in cases(name):
        work = ops.OPS[name].work(*case.args, **case.kwargs)
        assert work.flops >= 0 and work.bytes >= 0
        tokens = case.args[0].numel()
        assert tokens == 0 or work.bytes > 0, case


def test_work_counts_only_experts_that_have_rows():
    a, b = torch.zeros(4, 128), torch.zeros(8, 16, 128)
    offsets = torch.tensor([0, 4] + [4] * 7, dtype=torch.int32)
    work = ops.gemm.work(a, b, expert_offsets=offsets)
    assert work.flops == 2 * 4 * 16 * 128
    assert work.bytes == 4 * (a.numel() + 4 * 16 + 16 * 128) + 9 * 4
    work = ops.gemm.work(a, b[:0], expert_offsets=offsets[:1])
    assert work.bytes == 4 * (a.numel() + 4 * 16) + 4


def test_attention_work_of_a_causal_square():
    q, cache = torch.zeros(4, 2, 8), torch.zeros(1, 4, 1, 8)
    lengths = torch.tensor([4], dtype=torch.int32)
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    table = torch.zeros(1, 1, dtype=torch.int32)
    work = ops.flash_prefill.work(
        q, cache, cache, offsets, lengths, table, softmax_scale=1.0, max_seqlen_q=4
    )
    assert work.flops == 4 * 10 * 2 * 8
    assert work.bytes == 2 * 4 * q.numel() + 4 * 8 + 2 * 4 * 4 * 8 + 4


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(ops.__path__)])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"l4kernels.ops.{module}"))
    assert result.failed == 0


@pytest.mark.parametrize("name", ops.OPS)
def test_every_op_has_an_example(name):
    assert ">>>" in ops.OPS[name].__doc__


@pytest.mark.parametrize("name", ["rms_norm", "gemm", "moe_route", "flash_decode"])
def test_compiles_without_graph_breaks(name):
    op, case = ops.OPS[name], cases(name, dtype=torch.float32)[2]

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def program(*args, **kwargs):
        result = op(*args, **kwargs)
        return (result if isinstance(result, Tensor) else result[0]).float() + 1

    wanted = run(op, case)[0].float() + 1
    torch.testing.assert_close(program(*case.args, **case.kwargs), wanted)


@pytest.mark.parametrize("name", [name for name, op in ops.OPS.items() if op.has_out])
def test_out_form(name):
    op, case = ops.OPS[name], cases(name)[2]
    wanted = op(*case.args, **case.kwargs)
    for route in (l4kernels.reference, torch.no_grad):
        out = torch.full_like(wanted, float("nan"))
        with route():
            assert op(*case.args, **case.kwargs, out=out) is out
        assert torch.equal(out, wanted)
    with pytest.raises(ValueError, match=r"expected out to be \[7, "):
        op(*case.args, **case.kwargs, out=wanted.new_empty(wanted.shape[0] + 1, wanted.shape[1]))
