"""Root-mean-square normalisation, alone and fused with its neighbours."""

from typing import NamedTuple

import torch
from torch import Tensor

from l4kernels.ops.activation import ROW_SCALINGS
from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, FP8
from l4kernels.ops.contract import Contract
from l4kernels.ops.quant import BLOCK, fp8_with_scale
from l4kernels.ops.registry import Work, op, tensor_bytes
from l4kernels.ops.views import as_dtype, as_float, scalar


class AddRmsNorm(NamedTuple):
    """The normalised rows, and the new residual stream."""

    y: Tensor
    residual: Tensor


class RmsNormFp8(NamedTuple):
    """The quantised normalised rows; `y` and `residual` are `[0, D]` unless asked for."""

    q: Tensor
    scale: Tensor
    y: Tensor
    residual: Tensor


def _check_rms_norm(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("x", FLOATS, ["...", "D"], "rows")
    contract.tensor("weight", args.x.dtype, ["D"])


def _work_rms_norm(args: Bound) -> Work:
    return Work(
        flops=4 * args.x.numel(), bytes=2 * tensor_bytes(args.x) + tensor_bytes(args.weight)
    )


@op(check=_check_rms_norm, work=_work_rms_norm)
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """`round(x * rsqrt(mean(x^2) + eps)) * weight`, the mean over the last dimension.

    Statistics and the first product are float32. As in Llama 4 the normalised value is rounded to
    the dtype of `x` before it meets the weight, so there are two roundings.

    Args:
        x: `[..., D]` float32, bfloat16 or float16.
        weight: `[D]`, the dtype of `x`.
        eps: added to the mean square.

    Returns:
        `[..., D]`, the dtype of `x`.

    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), eps=0.0)
    tensor([[0.8485, 1.1314]])
    """
    return normalised(x, weight, eps)


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The body of `rms_norm`."""
    value = as_float(x)
    return as_dtype(value * inverse_rms(value, eps), x.dtype).mul_(weight)


def inverse_rms(value: Tensor, eps: float) -> Tensor:
    """`rsqrt(mean(value^2) + eps)`, `[..., 1]` of float32 rows `[..., D]`."""
    total = (value * value).sum(-1, keepdim=True)
    return torch.addcdiv(scalar(eps, value), total, scalar(value.shape[-1], value)).rsqrt_()


def _check_add_rms_norm(args: Bound) -> None:
    _check_rows(Contract(args))


def _check_rows(contract: Contract) -> None:
    dtype = contract.args.x.dtype
    contract.tensor("x", FLOATS, ["T", "D"], "rows")
    contract.tensor("weight", dtype, ["D"])
    contract.tensor("residual", dtype, ["T", "D"], "rows")


def _work_add_rms_norm(args: Bound) -> Work:
    return Work(
        flops=5 * args.x.numel(), bytes=4 * tensor_bytes(args.x) + tensor_bytes(args.weight)
    )


@op(check=_check_add_rms_norm, work=_work_add_rms_norm, returns=AddRmsNorm)
def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Adds a block's output to the residual stream and normalises the sum.

    Args:
        x: `[T, D]` float32, bfloat16 or float16.
        residual: `[T, D]`, the dtype of `x`.
        weight: `[D]`, the dtype of `x`.
        eps: added to the mean square.

    Returns:
        `AddRmsNorm(y, residual)`: the new residual is `round(x + residual)`, and
        `y = rms_norm(new residual, weight, eps)`.

    >>> add_rms_norm(torch.ones(1, 2), torch.tensor([[2.0, 3.0]]), torch.ones(2), eps=0.0)
    AddRmsNorm(y=tensor([[0.8485, 1.1314]]), residual=tensor([[3., 4.]]))
    """
    total = as_dtype(as_float(x) + as_float(residual), x.dtype)
    return normalised(total, weight, eps), total


def _check_rms_norm_fp8(args: Bound) -> None:
    contract = Contract(args)
    _check_rows(contract)
    contract.choice("scaling", args.scaling, ROW_SCALINGS)
    if args.scaling == "1x128":
        contract.multiple("the last dimension of x", contract.sizes["D"], BLOCK)


def _work_rms_norm_fp8(args: Bound) -> Work:
    x = args.x
    scales = x.shape[0] if args.scaling == "row" else x.numel() // BLOCK
    passes = 1 + int(args.keep_y) + (0 if args.residual is None else 2)
    moved = passes * tensor_bytes(x) + x.numel() * FP8.itemsize + 4 * scales
    return Work(flops=7 * x.numel(), bytes=moved + tensor_bytes(args.weight))


@op(check=_check_rms_norm_fp8, work=_work_rms_norm_fp8, returns=RmsNormFp8)
def rms_norm_fp8(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    scaling: str = "row",
    residual: Tensor | None = None,
    keep_y: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`rms_norm` (or `add_rms_norm`, if `residual` is given), quantised to e4m3.

    What is quantised is `y` after its roundings to the dtype of `x`, so `q` equals
    `quantize_fp8(rms_norm(x, weight, eps), scaling)`.

    Args:
        x: `[T, D]` float32, bfloat16 or float16.
        weight: `[D]`, the dtype of `x`.
        eps: added to the mean square.
        scaling: "row" (one scale per token) or "1x128" (D is a multiple of 128).
        residual: `[T, D]`, added to `x` first.
        keep_y: also return `y` itself, which the router reads.

    Returns:
        `RmsNormFp8(q, scale, y, residual)`: e4m3 `[T, D]`; float32 `[T]` or `[T, D / 128]`; `y`
        `[T, D]` or `[0, D]`; the new residual `[T, D]`, or `[0, D]` without `residual`.

    >>> rms_norm_fp8(torch.tensor([[3.0, 4.0]]), torch.ones(2)).q
    tensor([[320., 448.]], dtype=torch.float8_e4m3fn)
    """
    nothing = x.new_empty(0, x.shape[1])
    total = nothing
    if residual is not None:
        total = x = (x.float() + residual.float()).to(x.dtype)
    y = normalised(x, weight, eps)
    q, scale = fp8_with_scale(y.float(), scaling)
    return q, scale, y if keep_y else x.new_empty(0, x.shape[1]), total
