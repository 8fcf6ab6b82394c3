"""Activations between the two expert GEMMs."""

import torch
from torch import Tensor

from l4kernels.ops.check import FLOATS, Checker
from l4kernels.ops.registry import Work, op


def _check_silu_mul(x: Tensor) -> None:
    check = Checker("silu_mul")
    check.dtype("x", x, FLOATS)
    check.shape("x", x, ["M", "2F"])
    check.multiple("the last dimension of x (gate and up side by side)", x.shape[1], 2)
    check.last_dim_contiguous("x", x)


def _work_silu_mul(x: Tensor) -> Work:
    m, f = x.shape[0], x.shape[1] // 2
    return Work(flops=5 * m * f, bytes=3 * m * f * x.element_size())


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
    gate, up = x.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)
