"""What the kernels are measured against, in the same run. A peer has its op's signature and is
absent where it cannot be imported; it is checked against the reference before it is timed."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from l4kernels.ops import OPS

EAGER: dict[str, Callable[..., Any]] = {}


def _eager(function: Callable[..., Any]) -> Callable[..., Any]:
    EAGER[function.__name__] = function
    return function


@_eager
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


@_eager
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> Any:
    total = x + residual
    return F.rms_norm(total, weight.shape, weight, eps), total


@_eager
def silu_mul(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@_eager
def moe_permute(x: Tensor, permutation: Tensor, top_k: int) -> Tensor:
    return x.index_select(0, permutation // top_k)


@_eager
def moe_combine(
    y: Tensor,
    inverse: Tensor,
    top_k: int,
    shared: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    total = y.index_select(0, inverse).view(-1, top_k, y.shape[1]).sum(1)
    for extra in (shared, residual):
        total = total if extra is None else total + extra
    return total


@_eager
def embed(input_ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(input_ids, weight)


@_eager
def quantize_fp8(x: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    rows = x if scaling == "row" else x.unflatten(-1, (-1, 128))
    scale = rows.abs().amax(-1, keepdim=True).float() / 448
    q = (rows.float() / scale).to(torch.float8_e4m3fn)
    return q.view(x.shape), scale.squeeze(-1)


def peers(op: str) -> dict[str, Callable[..., Any]]:
    """Name -> callable with the op's signature. The compiled reference is a peer of every op."""
    found: dict[str, Callable[..., Any]] = {}
    if op in EAGER:
        found["torch"] = EAGER[op]
    found["torch.compile"] = torch.compile(EAGER.get(op, OPS[op].body))
    if op == "moe_route" and importlib.util.find_spec("fbgemm_gpu"):
        found["fbgemm"] = _fbgemm_index_shuffling
    return found


def _fbgemm_index_shuffling(logits: Tensor, top_k: int) -> Any:
    import fbgemm_gpu.experimental.gen_ai  # noqa: F401

    return torch.ops.fbgemm.index_shuffling(logits.bfloat16(), top_k=top_k)


def cupy_oracle(op: str, args: tuple[Any, ...]) -> Any:
    """The op once more in CuPy: an implementation on the GPU that shares nothing with torch."""
    if importlib.util.find_spec("cupy") is None:
        return None
    import cupy as cp

    def array(t: Tensor) -> Any:
        return cp.from_dlpack(t.float().contiguous())

    if op == "silu_mul":
        gate, up = cp.split(array(args[0]), 2, axis=-1)
        result = gate / (1 + cp.exp(-gate)) * up
    elif op == "rms_norm":
        x, weight = array(args[0]), array(args[1])
        result = x / cp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight
    elif op == "moe_permute":
        result = array(args[0])[cp.from_dlpack(args[1]) // args[2]]
    elif op == "embed":
        result = array(args[1])[cp.from_dlpack(args[0])]
    else:
        return None
    return torch.from_dlpack(result)
