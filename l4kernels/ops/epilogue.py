"""What all GEMM ops share: the loop over experts, the epilogue, and its argument checks."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from l4kernels.ops.check import Checker
from l4kernels.ops.registry import Work, tensor_bytes

ACTIVATIONS = ("none", "gelu", "swiglu")
INTERLEAVE = 8
"""SwiGLU weights alternate: 8 gate rows, then the 8 up rows of the same outputs."""

_BLOCK_ELEMENTS = 1 << 20
_BLOCK_ROWS = 128


def interleave_gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """Joins `[..., F, K]` gate and up weights into the `[..., 2F, K]` that SwiGLU GEMMs take.

    Rows alternate in blocks of 8: 8 gate rows, the 8 up rows of the same outputs, and so on; a
    kernel then finds both halves of an output in one thread. F is a multiple of 8.

    >>> gate, up = torch.zeros(16, 1), torch.ones(16, 1)
    >>> interleave_gate_up(gate, up).flatten().tolist() == ([0.0] * 8 + [1.0] * 8) * 2
    True
    """
    if gate.shape != up.shape or gate.dim() < 2 or gate.shape[-2] % INTERLEAVE:
        raise ValueError(
            f"interleave_gate_up: expected gate and up of one shape [..., F, K], F a multiple of "
            f"{INTERLEAVE}, got {list(gate.shape)} and {list(up.shape)}"
        )
    if gate.dtype != up.dtype:
        raise TypeError(
            f"interleave_gate_up: expected gate and up of one dtype, got {gate.dtype} "
            f"and {up.dtype}"
        )
    halves = [half.unflatten(-2, (-1, INTERLEAVE)) for half in (gate, up)]
    return torch.stack(halves, -3).flatten(-4, -2)


def deinterleave_gate_up(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Undoes `interleave_gate_up`.

    >>> gate, up = torch.zeros(16, 1), torch.ones(16, 1)
    >>> deinterleave_gate_up(interleave_gate_up(gate, up))[1].sum().item()
    16.0
    """
    if weight.dim() < 2 or weight.shape[-2] % (2 * INTERLEAVE):
        raise ValueError(
            f"deinterleave_gate_up: expected [..., 2F, K], 2F a multiple of {2 * INTERLEAVE}, "
            f"got {list(weight.shape)}"
        )
    gate, up = weight.unflatten(-2, (-1, 2, INTERLEAVE)).unbind(-3)
    return gate.flatten(-3, -2), up.flatten(-3, -2)


def check_epilogue(
    check: Checker,
    m: int,
    n: int,
    *,
    num_experts: int | None,
    expert_offsets: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    row_scale: Tensor | None,
    activation: str,
) -> None:
    check.choice("activation", activation, ACTIVATIONS)
    if activation == "swiglu":
        check.multiple("N with swiglu (blocks of 8 gate and 8 up rows)", n, 2 * INTERLEAVE)
    check.require(
        (num_experts is None) == (expert_offsets is None),
        "expected expert_offsets exactly when the weight has an expert dimension, got "
        + ("expert_offsets without it" if num_experts is None else "a weight [E, ...] alone"),
    )
    if expert_offsets is not None and num_experts is not None:
        check.dtype("expert_offsets", expert_offsets, (torch.int32,))
        check.shape("expert_offsets", expert_offsets, [num_experts + 1])
    floats = (torch.float32, torch.bfloat16, torch.float16)
    if bias is not None:
        check.require(num_experts is None, "expected no bias with a weight [E, ...], got one")
        check.dtype("bias", bias, floats)
        check.shape("bias", bias, [n])
    if residual is not None:
        check.dtype("residual", residual, floats)
        check.shape("residual", residual, [m, output_columns(n, activation)])
        check.last_dim_contiguous("residual", residual)
    if row_scale is not None:
        check.dtype("row_scale", row_scale, (torch.float32,))
        check.shape("row_scale", row_scale, [m])


def output_columns(n: int, activation: str) -> int:
    return n // 2 if activation == "swiglu" else n


def segments(
    op_name: str, m: int, expert_offsets: Tensor | None
) -> Iterator[tuple[int | None, int, int]]:
    """`(expert, first row, end row)` of each non-empty expert; one segment without offsets."""
    if expert_offsets is None:
        if m:
            yield None, 0, m
        return
    offsets = expert_offsets.tolist()
    ascending = all(a <= b for a, b in itertools.pairwise(offsets))
    if offsets[0] != 0 or offsets[-1] > m or not ascending:
        raise IndexError(
            f"l4kernels.{op_name}: expected expert_offsets to ascend from 0 to at most {m} "
            f"(the rows of a), got {offsets}"
        )
    for expert, (first, end) in enumerate(itertools.pairwise(offsets)):
        if end > first:
            yield expert, first, end


def matmul(
    op_name: str,
    rows_of_a: Callable[[int, int], Tensor],
    rows_of_b: Callable[[int | None, int, int], Tensor],
    m: int,
    n: int,
    k: int,
    *,
    whole_weight: bool,
    out: Tensor,
    expert_offsets: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`act(row_scale * (A @ B^T) + bias) + residual` into `out`, in float32, one rounding.

    `rows_of_a(first, end)` and `rows_of_b(expert, first, end)` give float32 rows. Unless
    `whole_weight` (float32 already in memory) a weight is expanded in blocks of rows, so that the
    extra memory does not grow with it.
    """
    step = max(n, 1)
    if not whole_weight:
        step = max(_BLOCK_ELEMENTS // max(k, 1) // _BLOCK_ROWS, 1) * _BLOCK_ROWS
    filled = 0
    for expert, first, end in segments(op_name, m, expert_offsets):
        rows = slice(first, end)
        a = rows_of_a(first, end)
        for n0 in range(0, n, step):
            n1 = min(n0 + step, n)
            columns = slice(output_columns(n0, activation), output_columns(n1, activation))
            result = out[rows, columns]
            in_place = activation == "none" and out.dtype == torch.float32
            acc = torch.mm(a, rows_of_b(expert, n0, n1).mT, out=result if in_place else None)
            if row_scale is not None:
                acc.mul_(row_scale[rows, None])
            if bias is not None:
                acc.add_(bias[n0:n1])
            acc = activate(acc, activation)
            if residual is not None:
                acc.add_(residual[rows, columns])
            if not in_place:
                result.copy_(acc)
        filled = end
    out[filled:] = 0
    return out


def activate(acc: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return torch.nn.functional.gelu(acc)
    if activation == "swiglu":
        gate, up = acc.unflatten(-1, (-1, 2, INTERLEAVE)).unbind(-2)
        return (torch.nn.functional.silu(gate) * up).flatten(-2)
    return acc


def experts_hit(num_experts: int, expert_offsets: Tensor | None) -> int:
    """Experts with at least one row; all of them where the offsets cannot be read."""
    if expert_offsets is None:
        return 1
    if expert_offsets.is_meta:
        return num_experts
    return int((expert_offsets.diff() > 0).sum())


def gemm_work(
    a: Tensor,
    n: int,
    weights: tuple[Tensor | None, ...],
    *,
    out_dtype: torch.dtype,
    activation: str,
    expert_offsets: Tensor | None,
    others: tuple[Tensor | None, ...],
) -> Work:
    """2MNK, A and D once, and the weights of the experts that have rows once."""
    m, k = a.shape
    columns = output_columns(n, activation)
    share = 1.0
    if expert_offsets is not None:
        num_experts = expert_offsets.shape[0] - 1
        share = experts_hit(num_experts, expert_offsets) / max(num_experts, 1)
    moved = tensor_bytes(a, expert_offsets, *others) + m * columns * out_dtype.itemsize
    return Work(flops=2 * m * n * k, bytes=moved + share * tensor_bytes(*weights))
