"""`op(..., out=tensor)`: which tensors it takes, and what it says of the others."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.cases import cases
from l4kernels import ops
from l4kernels.testing import emulated

A, B = torch.arange(12.0).view(3, 4), torch.arange(16.0).view(4, 4)
WITHOUT_OUT = [name for name, op in ops.OPS.items() if not op.has_out]


def buffer_of(*tensors: Tensor) -> list[Tensor]:
    """The tensors one after the other in one storage."""
    return [
        part.view(t.shape).copy_(t)
        for part, t in zip(
            torch.empty(sum(t.numel() for t in tensors)).split([t.numel() for t in tensors]),
            tensors,
            strict=True,
        )
    ]


def in_an_input() -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
    a, b = A.clone(), B.clone()
    yield a, {"b": b}, a
    yield a, {"b": b}, b[:3]
    yield a, {"b": b}, b[1:]
    rows = torch.zeros(5, 4)
    yield a, {"b": b, "residual": rows[:3]}, rows[1:4]
    yield a, {"b": b, "residual": rows[1:4]}, rows[:3]
    scale = torch.zeros(12)
    yield a, {"b": b, "row_scale": scale[9:]}, scale.view(3, 4)
    yield a, {"b": b, "bias": scale[4:8]}, scale.view(3, 4)


@pytest.mark.parametrize("number", range(len(list(in_an_input()))))
def test_out_in_the_memory_of_an_input_is_refused(number):
    a, inputs, out = list(in_an_input())[number]
    before = out.clone()
    with pytest.raises(ValueError, match=r"expected out to share no memory with an input"):
        ops.gemm(a, **inputs, out=out)
    assert torch.equal(out, before)


def beside_the_inputs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    yield *buffer_of(A, B, torch.zeros(3, 4)), None
    a, b, out = buffer_of(A, B, torch.zeros(3, 4))
    yield a, b, out, torch.ones(4)
    wide = torch.zeros(3, 8)
    wide[:, :4] = A
    yield wide[:, :4], B, wide[:, 4:], None  # columns of one tensor
    yield A[:0], B, A[:0], None
    yield A, B, torch.zeros(4, 3).T, None


@pytest.mark.parametrize("number", range(5))
def test_out_beside_the_inputs_is_taken(number):
    a, b, out, bias = list(beside_the_inputs())[number]
    wanted = a @ b.T + (0 if bias is None else bias)
    assert ops.gemm(a, b, bias=bias, out=out) is out
    assert torch.equal(out, wanted)


def test_out_may_be_the_residual_itself():
    stream = torch.ones(3, 4)
    ops.gemm(A, B, residual=stream, out=stream)
    assert torch.equal(stream, A @ B.T + 1)
    ops.gemm(A, B, residual=None, out=stream)
    assert torch.equal(stream, A @ B.T)


@pytest.mark.parametrize(("inputs", "out"), [("cpu", "meta"), ("meta", "cpu")])
def test_out_on_another_device_is_refused(inputs, out):
    a, b, out = A.to(inputs), B.to(inputs), torch.zeros(3, 4, device=out)
    for call in (ops.gemm, ops.gemm.reference):
        with pytest.raises(ValueError, match=rf"expected out to be .* on {inputs}, got .* on "):
            call(a, b, out=out)


@pytest.mark.parametrize("name", WITHOUT_OUT)
@pytest.mark.parametrize("route", [contextlib.nullcontext, l4kernels.reference])
def test_an_op_without_an_out_form_says_so_on_every_route(name, route):
    op, case = ops.OPS[name], cases(name)[0].copy()
    for call in (op, op.reference):
        with route(), pytest.raises(TypeError, match=f"l4kernels.{name} has no out= form"):
            call(*case.args, **case.kwargs, out=torch.zeros(1))


def kernel_inputs() -> tuple[Tensor, Tensor]:
    return torch.ones(8, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "number, name", enumerate(["a", "b", "bias", "row_scale", "a row of the residual"])
)
def test_the_binding_refuses_out_in_the_memory_of_an_input(number, name):
    a, b = kernel_inputs()
    memory = torch.ones(9, 64, dtype=torch.bfloat16)
    out, more = [
        (a, {}),
        (b[:8], {}),
        (memory[:8], {"bias": memory[7]}),
        (memory[:8], {"row_scale": memory.view(-1)[:16].view(torch.float32)}),
        (memory[:8], {"residual": memory[1:]}),
    ][number]
    with emulated(), pytest.raises(ValueError, match="share no memory with an input"):
        ops.gemm(a, b, out=out, **more)


def test_the_binding_takes_the_residual_itself_and_the_dtype_that_is_asked_for():
    a, b = kernel_inputs()
    residual = torch.ones(8, 64, dtype=torch.bfloat16)
    with emulated():
        assert ops.gemm(a, b, residual=residual, out=residual).eq(65).all()
        row = torch.ones(8, 64, dtype=torch.bfloat16)[::2][:1]  # its stride says nothing
        assert ops.gemm(a[:1], b, residual=row, out=row).eq(65).all()
        with pytest.raises(RuntimeError, match="expected out in the dtype that out_dtype asks for"):
            ops.gemm(a, b, out=torch.empty(8, 64))


def test_the_binding_refuses_out_in_the_memory_of_the_offsets():
    a, b = kernel_inputs()
    out = torch.zeros(8, 64, dtype=torch.bfloat16)
    offsets = out.view(torch.int32).view(-1)[:2]
    with emulated(), pytest.raises(ValueError, match="share no memory with an input"):
        ops.gemm(a, b[None], expert_offsets=offsets, out=out)
