"""Mixture of experts: choose experts, sort tokens by expert, gather and sum.

The router's score is an argument (`row_scale`) of the first expert GEMM: Llama 4 scales the
*input* of an expert, and SwiGLU is not linear, so scaling its output is another function. Neither
`moe_permute` nor `moe_combine` multiplies by it.
"""

import heapq
import itertools
import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from l4kernels.ops.activation import ROW_SCALINGS
from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, FP8
from l4kernels.ops.contract import Contract
from l4kernels.ops.indices import require_indices, source_rows
from l4kernels.ops.norm import normalised
from l4kernels.ops.quant import BLOCK, Quantized, fp8_with_scale
from l4kernels.ops.registry import Work, op, tensor_bytes
from l4kernels.ops.views import as_dtype, as_float

MAX_EXPERTS = 256
"""Of the grouped products: a shared expert is one of them."""
MAX_TOP_K = 8
MAX_CHOICES = MAX_TOP_K + 1
"""Rows of a token: its experts and the shared one."""
_FEW_LOGITS = 128
"""Sorted in Python sooner than by torch."""


class Routing(NamedTuple):
    """Where each token goes. Permuted rows are sorted by expert, then by token and choice."""

    topk_ids: Tensor
    topk_weights: Tensor
    row_scale: Tensor
    expert_offsets: Tensor
    permutation: Tensor
    inverse: Tensor


def _check_moe_route(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("logits", FLOATS, ["T", "E"], "rows")
    check_routing(contract, contract.sizes["E"], f"logits {list(args.logits.shape)}")


def check_routing(contract: Contract, experts: int, counted: str) -> None:
    """`top_k` of that many experts, and perhaps the shared one; `counted` says where they are."""
    args = contract.args
    most = MAX_EXPERTS - args.shared_expert
    beside = " beside the shared one" if args.shared_expert else ""
    contract.require(
        1 <= experts <= most,
        f"expected 1 to {most} experts{beside}, got {counted}",
    )
    limit = min(MAX_TOP_K, experts)
    contract.require(
        1 <= args.top_k <= limit,
        f"expected top_k in 1 to {limit} for {experts} experts, got {args.top_k}",
    )


def _work_moe_route(args: Bound) -> Work:
    tokens, experts = args.logits.shape
    return Work(
        flops=args.logits.numel() * args.top_k,
        bytes=tensor_bytes(args.logits) + routing_bytes(args, tokens, experts),
    )


def routing_bytes(args: Bound, tokens: int, experts: int) -> int:
    """Of the results of routing."""
    written: int = tokens * (args.top_k + args.shared_expert) * 5 * 4
    return written + (experts + args.shared_expert + 1) * 4


def fake_routing(like: Tensor, experts: int, top_k: int, shared: bool) -> tuple[Tensor, ...]:
    """Empty results of `moe_route`, for each row of `like`."""
    tokens, choices, ends = like.shape[0], top_k + shared, experts + shared + 1

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return like.new_empty(shape, dtype=dtype)

    rows, i32, f32 = tokens * choices, torch.int32, torch.float32
    grid = empty(i32, tokens, choices), empty(f32, tokens, choices)
    return *grid, empty(f32, rows), empty(i32, ends), empty(i32, rows), empty(i32, rows)


def _fake_moe_route(args: Bound) -> tuple[Tensor, ...]:
    return fake_routing(args.logits, args.logits.shape[1], args.top_k, args.shared_expert)


@op(check=_check_moe_route, work=_work_moe_route, fake=_fake_moe_route, returns=Routing)
def moe_route(
    logits: Tensor, top_k: int = 1, shared_expert: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Picks each token's experts and the order in which the expert GEMMs see the tokens.

    Llama 4's router: top-k on the logits themselves, then a sigmoid of each chosen logit; no
    softmax, no renormalisation, no capacity limit. Equal logits: the lowest expert first. A row
    with a NaN goes to experts 0 to k - 1 with weight NaN, which makes its output NaN (and on CUDA
    sets the device's error word).

    Args:
        logits: `[T, E]` float32, bfloat16 or float16, the output of the router's GEMM; E <= 256.
        top_k: experts per token, 1 to 8.
        shared_expert: every token also goes to expert E, with weight 1 whatever its logits, as its
            last choice. The grouped GEMMs then take the shared expert's weights after the others';
            its rows are the last T, in the order of the tokens. E <= 255.

    Returns:
        With k = `top_k` and E = `logits.shape[1]`, each one more if `shared_expert`, `Routing` of
        `topk_ids` int32 `[T, k]`, by descending logit;
        `topk_weights` float32 `[T, k]`, `sigmoid(logit)`;
        `row_scale` float32 `[T * k]`, the weights in permuted order;
        `expert_offsets` int32 `[E + 1]`, expert e owns permuted rows `[off[e], off[e + 1])`;
        `permutation` int32 `[T * k]`, permuted row -> flat index `token * k + choice`;
        `inverse` int32 `[T * k]`, flat index -> permuted row.

    >>> r = moe_route(torch.tensor([[0.0, 2.0], [1.0, 1.0], [-1.0, 0.0]]))
    >>> r.topk_ids.flatten().tolist(), r.permutation.tolist(), r.expert_offsets.tolist()
    ([1, 0, 1], [1, 0, 2], [0, 1, 3])
    >>> r = moe_route(torch.tensor([[0.0, 2.0], [1.0, 1.0]]), shared_expert=True)
    >>> r.topk_ids.tolist(), r.permutation.tolist(), r.expert_offsets.tolist()
    ([[1, 2], [0, 2]], [2, 0, 1, 3], [0, 1, 2, 4])
    """
    if logits.is_cpu and 0 < logits.numel() <= _FEW_LOGITS:
        return _route_few(logits, top_k, shared_expert)
    value = as_float(logits)
    if top_k == 1:
        chosen, ids = value.max(-1, keepdim=True)  # a NaN is the largest
        ids.masked_fill_(chosen.isnan(), 0)
        weights = torch.sigmoid(chosen)
    else:
        nan = value.isnan().any(-1, keepdim=True)
        value = value.masked_fill(nan, 0.0)
        ordered, order = value.sort(dim=-1, descending=True, stable=True)
        weights = torch.sigmoid(ordered[:, :top_k]).masked_fill(nan, torch.nan).contiguous()
        ids = order[:, :top_k]
    experts = logits.shape[1]
    if shared_expert:
        ids = torch.nn.functional.pad(ids, (0, 1), value=experts)
        weights = torch.nn.functional.pad(weights, (0, 1), value=1.0)
        experts += 1
    ids = ids.to(torch.int32, memory_format=torch.contiguous_format)
    sorted_ids, permutation = ids.view(-1).sort(stable=True)
    bounds = torch.arange(experts + 1, dtype=torch.int32, device=logits.device)
    offsets = torch.searchsorted(sorted_ids, bounds, out_int32=True)
    inverse = permutation.argsort().to(torch.int32)
    row_scale = weights.take(permutation)
    return ids, weights, row_scale, offsets, permutation.to(torch.int32), inverse


def _route_few(
    logits: Tensor, top_k: int, shared_expert: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`moe_route` in Python's numbers: done before torch would have sorted anything. A weight is
    rounded from float64, whatever stands beside it."""
    tokens, experts = logits.shape
    ids, weights = array("i"), array("f")
    for row in logits.tolist():
        if any(map(math.isnan, row)):
            ids.extend(range(top_k))
            weights.extend([math.nan] * top_k)
        else:  # of equals the first ones
            best = heapq.nlargest(top_k, range(experts), key=row.__getitem__)
            ids.extend(best)
            weights.extend([_sigmoid(row[expert]) for expert in best])
        if shared_expert:
            ids.append(experts)
            weights.append(1.0)
    rows = range(len(ids))
    permutation = sorted(rows, key=ids.__getitem__)
    inverse = sorted(rows, key=permutation.__getitem__)
    counts = map(ids.count, range(experts + shared_expert))
    offsets = itertools.accumulate(counts, initial=0)
    topk_weights, row_scale = (
        torch.frombuffer(values, dtype=torch.float32)
        for values in (weights, array("f", [weights[i] for i in permutation]))
    )
    topk_ids, expert_offsets, *orders = (
        torch.frombuffer(values, dtype=torch.int32)
        for values in (ids, array("i", offsets), array("i", permutation), array("i", inverse))
    )
    grid = tokens, len(ids) // tokens
    grids = topk_ids.view(grid), topk_weights.view(grid)
    return *grids, row_scale, expert_offsets, orders[0], orders[1]


def _sigmoid(x: float) -> float:
    power = math.exp(-abs(x))
    return (1.0 if x >= 0 else power) / (1.0 + power)


def _check_moe_permute(args: Bound) -> None:
    _check_permutation(Contract(args), (*FLOATS, FP8))


def _check_permutation(contract: Contract, dtypes: Sequence[torch.dtype]) -> None:
    contract.tensor("x", dtypes, ["T", "D"], "rows")
    rows = contract.sizes["T"] * _top_k(contract)
    contract.tensor("permutation", torch.int32, [rows])


def _top_k(contract: Contract) -> int:
    top_k: int = contract.args.top_k
    contract.require(
        1 <= top_k <= MAX_CHOICES, f"expected top_k in 1 to {MAX_CHOICES}, got {top_k}"
    )
    return top_k


def _work_moe_permute(args: Bound) -> Work:
    moved = (1 + args.top_k) * tensor_bytes(args.x) + tensor_bytes(args.permutation)
    return Work(flops=0, bytes=moved)


def _fake_moe_permute(args: Bound) -> Tensor:
    return args.x.new_empty(args.x.shape[0] * args.top_k, args.x.shape[1])


@op(check=_check_moe_permute, work=_work_moe_permute, fake=_fake_moe_permute)
def moe_permute(x: Tensor, permutation: Tensor, top_k: int) -> Tensor:
    """Copies token rows into expert order: row i of the result is `x[permutation[i] // top_k]`.

    Args:
        x: `[T, D]` float32, bfloat16, float16 or e4m3.
        permutation: int32 `[T * top_k]` of `moe_route`.
        top_k: rows per token, 1 to 9; a shared expert that `moe_route` sorted in has one of them.

    Returns:
        `[T * top_k, D]`, the dtype of `x`. Rows are never multiplied by the router's score.

    >>> moe_permute(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0], dtype=torch.int32), 1)
    tensor([[2.],
            [1.]])
    """
    return x.index_select(0, source_rows("moe_permute", permutation, top_k, x.shape[0]))


def _check_moe_permute_fp8(args: Bound) -> None:
    contract = Contract(args)
    _check_permutation(contract, FLOATS)
    contract.choice("scaling", args.scaling, ROW_SCALINGS)
    if args.scaling == "1x128":
        contract.multiple("the last dimension of x", contract.sizes["D"], BLOCK)


def _work_moe_permute_fp8(args: Bound) -> Work:
    x, top_k = args.x, args.top_k
    scales = top_k * (x.shape[0] if args.scaling == "row" else x.numel() // BLOCK)
    moved = tensor_bytes(x, args.permutation) + top_k * x.numel() + 4 * scales
    return Work(flops=3 * x.numel(), bytes=moved)


def _fake_moe_permute_fp8(args: Bound) -> tuple[Tensor, Tensor]:
    x = args.x
    rows, columns = x.shape[0] * args.top_k, x.shape[1]
    scales = (rows,) if args.scaling == "row" else (rows, columns // BLOCK)
    return x.new_empty((rows, columns), dtype=FP8), x.new_empty(scales, dtype=torch.float32)


@op(
    check=_check_moe_permute_fp8,
    work=_work_moe_permute_fp8,
    fake=_fake_moe_permute_fp8,
    returns=Quantized,
)
def moe_permute_fp8(
    x: Tensor, permutation: Tensor, top_k: int, scaling: str = "row"
) -> tuple[Tensor, Tensor]:
    """`moe_permute` and `quantize_fp8` in one pass; each token is quantised once.

    Args:
        x: `[T, D]` float32, bfloat16 or float16.
        permutation: int32 `[T * top_k]` of `moe_route`.
        top_k: rows per token, 1 to 9; a shared expert that `moe_route` sorted in has one of them.
        scaling: "row" (one scale per token) or "1x128" (D is a multiple of 128).

    Returns:
        `Quantized(q, scale)`: e4m3 `[T * top_k, D]`, and float32 `[T * top_k]` or
        `[T * top_k, D / 128]`.

    >>> order = torch.tensor([1, 0], dtype=torch.int32)
    >>> moe_permute_fp8(torch.tensor([[448.0], [896.0]]), order, 1).scale
    tensor([2., 1.])
    """
    rows = source_rows("moe_permute_fp8", permutation, top_k, x.shape[0])
    q, scale = fp8_with_scale(x.float(), scaling)
    return q.index_select(0, rows), scale.index_select(0, rows)


def _check_combined(args: Bound) -> Contract:
    """What all that combine have in common: a token's rows, and the residual stream."""
    contract = Contract(args)
    contract.tensor("y", FLOATS, ["T*k", "D"], "rows")
    rows, top_k = contract.sizes["T*k"], _top_k(contract)
    contract.multiple("the number of rows of y", rows, top_k)
    contract.sizes["T"] = rows // top_k
    contract.tensor("inverse", torch.int32, ["T*k"])
    contract.tensor("residual", args.y.dtype, ["T", "D"], "rows")
    return contract


def _check_moe_combine(args: Bound) -> None:
    _check_combined(args).tensor("shared", args.y.dtype, ["T", "D"], "rows")


def _work_combined(args: Bound, *added: Tensor | None) -> Work:
    y, top_k = args.y, args.top_k
    sums = top_k - 1 + sum(t is not None for t in added)
    moved = tensor_bytes(y, args.inverse, *added) + tensor_bytes(y) // top_k
    return Work(flops=sums * (y.numel() // top_k), bytes=moved)


def _work_moe_combine(args: Bound) -> Work:
    return _work_combined(args, args.shared, args.residual)


def _fake_moe_combine(args: Bound) -> Tensor:
    return args.y.new_empty(args.y.shape[0] // args.top_k, args.y.shape[1])


@op(check=_check_moe_combine, work=_work_moe_combine, fake=_fake_moe_combine)
def moe_combine(
    y: Tensor,
    inverse: Tensor,
    top_k: int,
    shared: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Brings expert outputs back to token order and sums what belongs to a token.

    Args:
        y: `[T * top_k, D]` float32, bfloat16 or float16, rows in permuted order.
        inverse: int32 `[T * top_k]` of `moe_route`.
        top_k: rows per token, 1 to 9; a shared expert that `moe_route` sorted in has one of them.
        shared: `[T, D]`, the output of a shared expert that is not among the rows of `y`.
        residual: `[T, D]`, the residual stream.

    Returns:
        `[T, D]`, the dtype of `y`: the k rows in order of choice, plus `shared`, plus `residual`,
        summed in float32 and rounded once.

    >>> y = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    >>> moe_combine(y, torch.tensor([0, 2, 1, 3], dtype=torch.int32), 2)
    tensor([[ 101.],
            [1010.]])
    """
    return _combined("moe_combine", y, inverse, top_k, shared, residual)


def _combined(
    op_name: str, y: Tensor, inverse: Tensor, top_k: int, *added: Tensor | None
) -> Tensor:
    require_indices(op_name, "inverse", inverse, 0, y.shape[0])
    total = as_float(y.index_select(0, inverse))
    if top_k > 1:
        total = total.view(-1, top_k, total.shape[1]).sum(1)
    for other in added:
        if other is not None:
            total.add_(other)
    return as_dtype(total, y.dtype)


class CombinedNorm(NamedTuple):
    """The residual stream, and its normalised rows."""

    x: Tensor
    normed: Tensor


class CombinedNormFp8(NamedTuple):
    """The residual stream, and its normalised rows in e4m3 with a scale each."""

    x: Tensor
    q: Tensor
    scale: Tensor


def _check_moe_combine_norm(args: Bound) -> None:
    contract = _check_combined(args)
    contract.tensor("norm_weight", args.y.dtype, ["D"])


def _work_moe_combine_norm(args: Bound) -> Work:
    values = args.y.numel() // args.top_k
    moved = values * args.y.element_size() + tensor_bytes(args.norm_weight)
    return _work_combined(args, args.residual) + Work(flops=4 * values, bytes=moved)


def _fake_moe_combine_norm(args: Bound) -> tuple[Tensor, Tensor]:
    return _fake_moe_combine(args), _fake_moe_combine(args)


@op(
    check=_check_moe_combine_norm,
    work=_work_moe_combine_norm,
    fake=_fake_moe_combine_norm,
    returns=CombinedNorm,
)
def moe_combine_norm(
    y: Tensor,
    inverse: Tensor,
    top_k: int,
    norm_weight: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`moe_combine`, and `rms_norm` of what it gives: the end of one layer and the start of the
    next.

    Args:
        y, inverse, top_k, residual: as for `moe_combine`.
        norm_weight: `[D]`, the dtype of `y`; on CUDA D is at most 16,384.
        eps: added to the mean square.

    Returns:
        `CombinedNorm(x, normed)`, both `[T, D]` in the dtype of `y`: `x` of `moe_combine`, rounded,
        and `rms_norm(x, norm_weight, eps)`.

    >>> y, order = torch.tensor([[1.0, 1.0], [2.0, 3.0]]), torch.tensor([1, 0], dtype=torch.int32)
    >>> moe_combine_norm(y, order, 2, torch.ones(2), eps=0.0)
    CombinedNorm(x=tensor([[3., 4.]]), normed=tensor([[0.8485, 1.1314]]))
    """
    x = _combined("moe_combine_norm", y, inverse, top_k, residual)
    return x, normalised(x, norm_weight, eps)


def _work_moe_combine_norm_fp8(args: Bound) -> Work:
    values, tokens = args.y.numel() // args.top_k, args.y.shape[0] // args.top_k
    moved = values * FP8.itemsize + 4 * tokens + tensor_bytes(args.norm_weight)
    return _work_combined(args, args.residual) + Work(flops=7 * values, bytes=moved)


def _fake_moe_combine_norm_fp8(args: Bound) -> tuple[Tensor, Tensor, Tensor]:
    x = _fake_moe_combine(args)
    q, scale = x.new_empty(x.shape, dtype=FP8), x.new_empty(x.shape[0], dtype=torch.float32)
    return x, q, scale


@op(
    check=_check_moe_combine_norm,
    work=_work_moe_combine_norm_fp8,
    fake=_fake_moe_combine_norm_fp8,
    returns=CombinedNormFp8,
)
def moe_combine_norm_fp8(
    y: Tensor,
    inverse: Tensor,
    top_k: int,
    norm_weight: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`moe_combine`, and `rms_norm_fp8` of what it gives, with one scale per token.

    Args:
        y, inverse, top_k, norm_weight, eps, residual: as for `moe_combine_norm`.

    Returns:
        `CombinedNormFp8(x, q, scale)`: `x` `[T, D]` of `moe_combine`; e4m3 `[T, D]` and float32
        `[T]` of `rms_norm_fp8(x, norm_weight, eps)`.

    >>> y, order = torch.tensor([[1.0, 1.0], [2.0, 3.0]]), torch.tensor([1, 0], dtype=torch.int32)
    >>> moe_combine_norm_fp8(y, order, 2, torch.ones(2)).q
    tensor([[320., 448.]], dtype=torch.float8_e4m3fn)
    """
    x = _combined("moe_combine_norm_fp8", y, inverse, top_k, residual)
    return x, *fp8_with_scale(normalised(x, norm_weight, eps).float(), "row")
