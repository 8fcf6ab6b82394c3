"""Arguments of a wrong Python type, of every op: refused by name, with what was expected and what
came. The table is made from the schemas."""

import contextlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import l4kernels
from bench.checks.cases import cases
from l4kernels import ops

TENSOR, NUMBERS = torch.ones(2), np.ones(2, dtype=np.float32)
WRONG: dict[str, list[Any]] = {  # the type in a schema: values that are not of it
    "Tensor": [None, [1.0, 2.0], (), NUMBERS, "x", 3, 2.5, True, torch.float32, object(), {}],
    "SymInt": [
        None,
        1.5,
        4.0,
        True,
        np.True_,
        np.float32(4),
        "1",
        b"1",
        [1],
        TENSOR,
        torch.tensor(4),
    ],
    "float": [None, 10**400, True, np.False_, "1.0", 1j, [1.0], NUMBERS, torch.tensor(1.0)],
    "bool": [None, 0, 1, 1.0, "yes", TENSOR, torch.tensor(True), [True]],
    "str": [None, 3, b"row", ["row"], TENSOR, True],
    "ScalarType": [5, True, "float32", float, np.float32, TENSOR],
}
ARGUMENT = re.compile(r"(\w+)(?:\(\w+!\))?(\??) (\w+)(?:=[^,)]+)?")


def arguments(op: ops.Op) -> Iterator[tuple[str, str, bool]]:
    """Name, type, and whether it may be None."""
    inside = op.schema[op.schema.index("(") + 1 : op.schema.rindex(") ->")]
    for part in inside.split(", "):
        if part != "*":
            kind, optional, name = ARGUMENT.fullmatch(part).groups()
            yield name, kind, bool(optional)


def good_values(op: ops.Op) -> dict[str, Any]:
    case = cases(op.name)[-1].copy()
    bound = inspect.signature(op.body).bind(*case.args, **case.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def as_a_call(op: ops.Op, values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional where that is possible, as callers write them."""
    parameters = inspect.signature(op.body).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    named = {name: value for name, value in values.items() if name not in positional}
    return [values[name] for name in positional], named


CASES = [
    (name, argument, kind, optional)
    for name, op in ops.OPS.items()
    for argument, kind, optional in arguments(op)
]


def test_the_table_has_every_argument():
    assert {kind for _, _, kind, _ in CASES} == set(WRONG)
    for name, op in ops.OPS.items():
        found = [argument for owner, argument, _, _ in CASES if owner == name]
        assert found == list(inspect.signature(op.body).parameters)


@pytest.mark.parametrize(("name", "argument", "kind", "optional"), CASES)
def test_a_value_of_another_type_is_refused_by_name(name, argument, kind, optional):
    op = ops.OPS[name]
    good = good_values(op)
    op(**good)  # what is remembered of a good call must not let a bad one through
    for wrong in WRONG[kind]:
        if optional and wrong is None:
            continue
        values = {**good, argument: wrong}
        args, named = as_a_call(op, values)
        for call in (lambda: op(**values), lambda: op(*args, **named)):  # noqa: B023
            for route in (contextlib.nullcontext, l4kernels.reference):
                with route(), pytest.raises(TypeError) as error:
                    call()
                start = f"l4kernels.{name}: expected {argument} to be a"
                assert str(error.value).startswith(start) and ", got " in str(error.value)
    op(**good)


@pytest.mark.parametrize("name", ops.OPS)
def test_calls_that_do_not_fit_the_signature(name):
    op = ops.OPS[name]
    good = good_values(op)
    args, named = as_a_call(op, good)
    first = next(iter(good))
    required = [n for n, p in inspect.signature(op.body).parameters.items() if p.default is p.empty]
    calls = [
        ("too many positional", [*args, *named.values(), 1], {}),
        ("multiple values", args, {**named, first: good[first]}),
        ("unexpected keyword", args, {**named, "extra": 1}),
        *(("missing", [], {n: v for n, v in good.items() if n != gone}) for gone in required),
    ]
    for message, wrong_args, wrong_named in calls:
        for call in (op, op.reference, op.work):
            with pytest.raises(TypeError, match=rf"l4kernels\.{name}: .*{message}"):
                call(*wrong_args, **wrong_named)


@pytest.mark.parametrize("name", [name for name, op in ops.OPS.items() if op.has_out])
@pytest.mark.parametrize("out", [[1.0], NUMBERS, "x", 3, True])
def test_out_of_another_type(name, out):
    op = ops.OPS[name]
    for call in (op, op.reference):
        with pytest.raises(TypeError, match=f"l4kernels.{name}: expected out to be a Tensor"):
            call(**good_values(op), out=out)


def test_the_message_says_what_came():
    x = torch.ones(2, 4)
    for wrong, shown in ((None, "None"), ([1], r"\[1\]"), ("w", "'w'"), (NUMBERS, "array")):
        with pytest.raises(TypeError, match=f"expected weight to be a Tensor, got {shown}"):
            ops.rms_norm(x, wrong)
    with pytest.raises(TypeError, match=r"top_k to be an int, got a Tensor \[\] int64 on cpu"):
        ops.moe_route(x, torch.tensor(1))
    with pytest.raises(TypeError, match=r"to be a Tensor or None, got 3$"):
        ops.gemm(x, x, residual=3)


def test_numbers_of_numpy_are_numbers():
    x, weight = torch.randn(2, 4), torch.ones(4)
    for eps in (1, np.float32(1), np.float64(1), np.int64(1)):
        assert torch.equal(ops.rms_norm(x, weight, eps), ops.rms_norm(x, weight, 1.0))
    assert torch.equal(ops.moe_route(x, np.int32(2)).topk_ids, ops.moe_route(x, 2).topk_ids)


def test_the_first_call_of_a_process_may_be_wrong():
    """Before there is a form of a call to remember."""
    code = """
from l4kernels import ops
for name, op in ops.OPS.items():
    try:
        op()
    except TypeError as error:
        assert str(error).startswith(f"l4kernels.{name}: missing a required argument"), error
    else:
        raise AssertionError(name)
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


NOT_DENSE = {
    "sparse_coo": torch.Tensor.to_sparse,
    "sparse_csr": torch.Tensor.to_sparse_csr,
    "mkldnn": torch.Tensor.to_mkldnn,
    "nested": lambda t: torch.nested.nested_tensor([t]),
    "jagged": lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")  # torch's, about its prototypes
@pytest.mark.parametrize("name", ops.OPS)
def test_tensors_that_are_not_dense_are_refused_by_name(name):
    op, seen = ops.OPS[name], set()
    good = good_values(op)
    for argument in [n for n, value in good.items() if isinstance(value, torch.Tensor)]:
        for kind, change in NOT_DENSE.items():
            try:
                wrong = change(good[argument])
            except (RuntimeError, ValueError, IndexError):  # there is no such tensor
                continue
            seen.add(kind)
            said = f"l4kernels.{name}: expected {argument} to be a dense tensor, got a "
            for call in (op, op.reference):
                with pytest.raises(TypeError, match=re.escape(said)):
                    call(**{**good, argument: wrong})
    assert {"sparse_coo", "nested"} <= seen
    if op.has_out:
        out = op(**good)
        for call in (op, op.reference):
            with pytest.raises(TypeError, match="expected out to be a dense tensor, got a sparse"):
                call(**good, out=out.to_sparse())


@pytest.mark.parametrize("huge", [1 << 63, 10**300, -(10**300), 10**400])
def test_a_huge_int_is_the_same_whatever_was_called_before(huge, monkeypatch):
    """A form is remembered by its types; how large an int may be is no matter of its type."""
    x, weight = torch.ones(2, 4), torch.ones(4)
    for call, fits in (
        (lambda number: ops.rms_norm(x, weight, number), abs(huge) < 10**308),
        (lambda number: ops.moe_route(x, number), False),
    ):
        said = []
        for first in ([huge], [1, huge]):
            for op in (ops.rms_norm, ops.moe_route):
                monkeypatch.setattr(op, "_forms", {})
                monkeypatch.setattr(op, "_last_form", (None, None))
            try:
                [call(number) for number in first]
                said.append("")
            except TypeError as error:
                said.append(str(error))
        assert said[0] == said[1] and (said[0] == "") == fits


def test_what_stands_for_a_tensor_goes_to_torch():
    """Proxies of torch.fx, and anything else with `__torch_function__`."""

    class Recorder:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function

    x, weight = torch.randn(3, 4), torch.ones(4)
    assert ops.rms_norm(Recorder(), weight) is torch.ops.l4kernels.rms_norm.default
    assert ops.rms_norm(x, weight, Recorder()) is torch.ops.l4kernels.rms_norm.default
    traced = torch.fx.symbolic_trace(lambda x, eps: ops.rms_norm(x, weight, eps))
    assert torch.equal(traced(x, 1e-3), ops.rms_norm(x, weight, 1e-3))
    traced = torch.fx.symbolic_trace(lambda a, out: ops.gemm(a, weight[None], out=out))
    out = torch.empty(3, 1)
    assert traced(x, out) is out and torch.equal(out, ops.gemm(x, weight[None]))
