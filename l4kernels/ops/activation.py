"""Activations between the two expert GEMMs."""

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS
from l4kernels.ops.contract import Contract
from l4kernels.ops.quant import BLOCK, Quantized, fp8_with_scale
from l4kernels.ops.registry import Work, op

ROW_SCALINGS = ("row", "1x128")
"""Scale layouts a kernel can write without a second pass over the whole tensor."""


def _check_silu_mul(args: Bound) -> None:
    _check_gate_up(Contract(args))


def _check_gate_up(contract: Contract) -> None:
    contract.tensor("x", FLOATS, ["M", "2F"], "rows")
    contract.multiple("the last dimension of x (gate and up side by side)", contract.sizes["2F"], 2)


def _work_silu_mul(args: Bound) -> Work:
    m, f = args.x.shape[0], args.x.shape[1] // 2
    return Work(flops=5 * m * f, bytes=3 * m * f * args.x.element_size())


@op(check=_check_silu_mul, work=_work_silu_mul)
def silu_mul(x: Tensor) -> Tensor:
    """SwiGLU's gate: `silu(gate) * up` with `silu(z) = z * sigmoid(z)` (Llama 4 MLP).

    Args:
        x: `[M, 2F]` float32, bfloat16 or float16; columns `[0, F)` are the gate, `[F, 2F)` up.

    Returns:
        `[M, F]`, the dtype of `x`; computed in float32 and rounded once.

    >>> silu_mul(torch.tensor([[0.0, 1.0, 3.0, 2.0]]))
    tensor([[0.0000, 1.4621]])
    """
    return _gated(x).to(x.dtype)


def _gated(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def _check_silu_mul_fp8(args: Bound) -> None:
    contract = Contract(args)
    _check_gate_up(contract)
    contract.choice("scaling", args.scaling, ROW_SCALINGS)
    if args.scaling == "1x128":
        contract.multiple("F, half of the last dimension of x,", contract.sizes["2F"] // 2, BLOCK)


def _work_silu_mul_fp8(args: Bound) -> Work:
    m, f = args.x.shape[0], args.x.shape[1] // 2
    scales = m if args.scaling == "row" else m * f // BLOCK
    return Work(flops=8 * m * f, bytes=m * f * (2 * args.x.element_size() + 1) + 4 * scales)


@op(check=_check_silu_mul_fp8, work=_work_silu_mul_fp8, returns=Quantized)
def silu_mul_fp8(x: Tensor, scaling: str = "row") -> tuple[Tensor, Tensor]:
    """`silu_mul`, quantised to e4m3 for the next GEMM; the float32 product is what is quantised.

    Args:
        x: `[M, 2F]` float32, bfloat16 or float16; columns `[0, F)` are the gate, `[F, 2F)` up.
        scaling: "row" (one scale per token) or "1x128" (F is a multiple of 128).

    Returns:
        `Quantized(q, scale)`: e4m3 `[M, F]`, and float32 `[M]` or `[M, F / 128]`.

    >>> silu_mul_fp8(torch.tensor([[0.0, 1.0, 3.0, 2.0]])).q
    tensor([[  0., 448.]], dtype=torch.float8_e4m3fn)
    """
    return fp8_with_scale(_gated(x), scaling)
