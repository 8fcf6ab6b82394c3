"""What all GEMM ops share: the loop over experts, the epilogue, and its argument checks."""

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS
from l4kernels.ops.contract import Contract
from l4kernels.ops.indices import source_rows
from l4kernels.ops.moe import MAX_CHOICES
from l4kernels.ops.registry import Work, tensor_bytes
from l4kernels.ops.views import part

ACTIVATIONS = ("none", "gelu", "swiglu")
INTERLEAVE = 8
"""SwiGLU weights alternate: 8 gate rows, then the 8 up rows of the same outputs."""

MAX_GATHERED_ROWS = 32
"""Rows of a product by expert that takes them from where they lie (csrc/tile/few_rows.h)."""

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


def check_epilogue(contract: Contract) -> None:
    """What follows the product of M rows with N columns, of E experts or of none."""
    args, n = contract.args, contract.sizes["N"]
    if args.out_dtype is not None:
        contract.require(
            args.out_dtype in FLOATS, f"expected a float out_dtype, got {args.out_dtype}"
        )
    contract.choice("activation", args.activation, ACTIVATIONS)
    if args.activation == "swiglu":
        contract.multiple("N with swiglu (blocks of 8 gate and 8 up rows)", n, 2 * INTERLEAVE)
    check_experts(contract)
    contract.require(
        args.bias is None or "E" not in contract.sizes,
        "expected no bias with a weight [E, ...], got one",
    )
    contract.tensor("bias", FLOATS, ["N"])
    contract.tensor("residual", FLOATS, ["M", output_columns(n, args.activation)], "rows")


def check_experts(contract: Contract) -> None:
    """`expert_offsets` of E experts, and a `row_scale` for each of M rows."""
    num_experts, given = contract.sizes.get("E"), contract.args.expert_offsets is not None
    contract.require(
        (num_experts is not None) == given,
        "expected expert_offsets exactly when the weight has an expert dimension, got "
        + ("expert_offsets without it" if given else "a weight [E, ...] alone"),
    )
    if num_experts is not None:
        contract.tensor("expert_offsets", torch.int32, [num_experts + 1])
    contract.tensor("row_scale", torch.float32, ["M"])


def check_gather(contract: Contract) -> None:
    """`permutation` and `top_k`, before anything else looks at M: from here on that is the number
    of rows of the product.
    """
    args, sizes = contract.args, contract.sizes
    contract.require(
        1 <= args.top_k <= MAX_CHOICES, f"expected top_k in 1 to {MAX_CHOICES}, got {args.top_k}"
    )
    if args.permutation is None:
        contract.require(
            args.top_k == 1, f"expected no top_k without permutation, got {args.top_k}"
        )
        return
    contract.require(
        args.expert_offsets is not None, "expected expert_offsets with permutation, got none"
    )
    contract.dtype("a", args.a, FLOATS)
    rows = sizes["M"] = sizes["M"] * args.top_k
    contract.require(
        rows <= MAX_GATHERED_ROWS,
        f"expected at most {MAX_GATHERED_ROWS} rows of permutation, got {rows}; call moe_permute "
        "first",
    )
    contract.tensor("permutation", torch.int32, ["M"])


def gathered(op_name: str, a: Tensor, permutation: Tensor | None, top_k: int) -> Tensor:
    """The rows of the product: `a`, or row i is `a[permutation[i] // top_k]`."""
    if permutation is None:
        return a
    return a.index_select(0, source_rows(op_name, permutation, top_k, a.shape[0]))


def output_columns(n: int, activation: str) -> int:
    return n // 2 if activation == "swiglu" else n


Segment = tuple[int | None, int, int]
"""An expert, or None, and its first row and their end."""


def segments(op_name: str, m: int, expert_offsets: Tensor) -> list[Segment]:
    """Of each expert that has rows."""
    offsets = expert_offsets.tolist()
    if offsets[0] != 0 or offsets[-1] > m or offsets != sorted(offsets):
        raise IndexError(
            f"l4kernels.{op_name}: expected expert_offsets to ascend from 0 to at most {m} "
            f"(the rows of a), got {offsets}"
        )
    rows = enumerate(itertools.pairwise(offsets))
    return [(expert, first, end) for expert, (first, end) in rows if end > first]


RowsOfB = Callable[[int | None, int, int], Tensor]
"""Float32 rows of a weight: of the expert, the first row and the end."""


def matmul(
    op_name: str,
    a: Tensor,
    b: Tensor | RowsOfB,
    n: int,
    expert_offsets: Tensor | None,
    row_scale: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`act(row_scale * (A @ B^T) + bias) + residual` in float32, with one rounding.

    Args:
        a: float32 `[M, K]`.
        b: float32 `[N, K]`, or `[E, N, K]` with `expert_offsets`. What is not float32 in memory is
            a function: it is expanded in blocks of rows, so that the extra memory does not grow
            with the weight.
    """
    m, k = a.shape
    step = n
    if not isinstance(b, Tensor):
        step = max(_BLOCK_ELEMENTS // max(k, 1) // _BLOCK_ROWS, 1) * _BLOCK_ROWS
    parts: list[Segment] = [(None, 0, m)]
    if expert_offsets is not None:
        parts = segments(op_name, m, expert_offsets)
    few = len(parts) == 1 or m <= _BLOCK_ROWS
    if few and n <= step and parts and parts[-1][2] == m:
        # All rows have one epilogue, and nothing is cut or copied.
        acc = _products(a, b, parts, n)
        acc = epilogue(acc, bias, residual, row_scale, activation)
        return acc if out_dtype == torch.float32 else acc.to(out_dtype)
    rows_of_b: RowsOfB = partial(_rows, b) if isinstance(b, Tensor) else b
    step = max(step, 1)
    out = a.new_empty((m, output_columns(n, activation)), dtype=out_dtype)
    filled = 0
    for expert, first, end in parts:
        own = part(a, first, end)
        scale = None if row_scale is None else part(row_scale, first, end)
        for n0 in range(0, n, step):
            n1 = min(n0 + step, n)
            columns = slice(output_columns(n0, activation), output_columns(n1, activation))
            acc = linear(own, rows_of_b(expert, n0, n1))
            added = None if residual is None else residual[first:end, columns]
            own_bias = None if bias is None else bias[n0:n1]
            out[first:end, columns] = epilogue(acc, own_bias, added, scale, activation)
        filled = end
    if filled < m:
        out[filled:] = 0
    return out


def _products(a: Tensor, b: Tensor | RowsOfB, parts: list[Segment], n: int) -> Tensor:
    """`[M, n]`: the rows of each part with their own weights, which are N rows."""

    def weight(expert: int | None) -> Tensor:
        if not isinstance(b, Tensor):
            return b(expert, 0, n)
        return b if expert is None else b[expert]

    if len(parts) == 1:
        return linear(a, weight(parts[0][0]))
    own = a.split_with_sizes([end - first for _, first, end in parts])
    return torch.cat([linear(x, weight(e)) for x, (e, _, _) in zip(own, parts, strict=True)])


def _rows(b: Tensor, expert: int | None, first: int, end: int) -> Tensor:
    return part(b if expert is None else b[expert], first, end)


def epilogue(
    acc: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    row_scale: Tensor | None,
    activation: str,
) -> Tensor:
    """In place as far as it goes."""
    if row_scale is not None:
        acc.mul_(row_scale.unsqueeze(1))
    if bias is not None:
        acc.add_(bias)
    if activation != "none":
        acc = activate(acc, activation)
    return acc if residual is None else acc.add_(residual)


def activate(acc: Tensor, activation: str) -> Tensor:
    """GELU or SwiGLU."""
    if activation == "gelu":
        return gelu(acc)
    m, n = acc.shape
    gate, up = acc.view(m, n // (2 * INTERLEAVE), 2, INTERLEAVE).unbind(2)
    return silu(gate).mul_(up).view(m, n // 2)


def experts_hit(num_experts: int, expert_offsets: Tensor | None) -> int:
    """Experts with at least one row; all of them where the offsets cannot be read."""
    if expert_offsets is None:
        return 1
    if expert_offsets.is_meta:
        return num_experts
    return int((expert_offsets.diff() > 0).sum())


def gemm_work(
    args: Bound,
    n: int,
    weights: tuple[Tensor | None, ...],
    *,
    out_dtype: torch.dtype,
    activation: str,
    others: tuple[Tensor | None, ...],
    top_k: int = 1,
) -> Work:
    """2MNK, A and D once, and the weights of the experts that have rows once."""
    a, expert_offsets = args.a, args.expert_offsets
    m, k = top_k * a.shape[0], a.shape[1]
    columns = output_columns(n, activation)
    share = 1.0
    if expert_offsets is not None:
        num_experts = expert_offsets.shape[0] - 1
        share = experts_hit(num_experts, expert_offsets) / max(num_experts, 1)
    moved = tensor_bytes(a, expert_offsets, *others) + m * columns * out_dtype.itemsize
    return Work(flops=2 * m * n * k, bytes=moved + share * tensor_bytes(*weights))
