"""The way of tokens into their experts in one op: norm, router, routing."""

from typing import NamedTuple

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.gemm import gemm
from l4kernels.ops.moe import check_routing, fake_routing, moe_route, routing_bytes
from l4kernels.ops.norm import rms_norm
from l4kernels.ops.registry import Work, op, tensor_bytes

MAX_ROUTER_TOKENS = 65_536
"""Of one call of `moe_router`."""
_FEW_EXPERTS, _TOKENS_OF_MANY = 32, 256


def router_tokens(experts: int) -> int:
    """Up to how many tokens `moe_router` beats `rms_norm`, `gemm` and `moe_route`, by the model.

    Every 8 tokens read the router's weights again: that is less than what the GEMM reads again,
    the rows, for up to 32 experts; of more experts only few tokens are worth it.

    >>> router_tokens(16), router_tokens(128)
    (65536, 256)
    """
    return MAX_ROUTER_TOKENS if experts <= _FEW_EXPERTS else _TOKENS_OF_MANY


class RoutedRows(NamedTuple):
    """Normalised rows, and as of `Routing` where each goes."""

    normed: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    row_scale: Tensor
    expert_offsets: Tensor
    permutation: Tensor
    inverse: Tensor


def _check_moe_router(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("x", FLOATS, ["T", "D"], "rows")
    contract.require(
        args.x.shape[0] <= MAX_ROUTER_TOKENS,
        f"expected at most {MAX_ROUTER_TOKENS} tokens, got x {describe(args.x)}; call rms_norm, "
        f"gemm and moe_route for more",
    )
    contract.require(
        args.x.shape[1] > 0, f"expected rows of x that are not empty, got x {describe(args.x)}"
    )
    contract.tensor("norm_weight", args.x.dtype, ["D"])
    contract.tensor("router_weight", args.x.dtype, ["R", "D"], "contiguous")
    check_routing(contract, args.num_experts, f"num_experts {args.num_experts}")
    contract.require(
        args.num_experts <= args.router_weight.shape[0],
        f"expected router_weight to have a row for each of {args.num_experts} experts "
        f"(num_experts), got {describe(args.router_weight)}",
    )


def _work_moe_router(args: Bound) -> Work:
    x, experts = args.x, args.num_experts
    weights = tensor_bytes(args.norm_weight) + experts * x.shape[1] * x.element_size()
    return Work(
        flops=(4 + 2 * experts) * x.numel(),
        bytes=2 * tensor_bytes(x) + weights + routing_bytes(args, x.shape[0], experts),
    )


def _fake_moe_router(args: Bound) -> tuple[Tensor, ...]:
    normed = rms_norm.body(args.x, args.norm_weight, args.eps)
    return normed, *fake_routing(args.x, args.num_experts, args.top_k, args.shared_expert)


@op(check=_check_moe_router, work=_work_moe_router, fake=_fake_moe_router, returns=RoutedRows)
def moe_router(
    x: Tensor,
    norm_weight: Tensor,
    router_weight: Tensor,
    num_experts: int,
    eps: float = 1e-5,
    top_k: int = 1,
    shared_expert: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`rms_norm`, the router's product in float32 and `moe_route`, in one launch.

    Args:
        x: `[T, D]` float32, bfloat16 or float16; T <= 65,536 (`router_tokens` says up to where
            it is the fastest way).
        norm_weight: `[D]`, the dtype of `x`.
        router_weight: `[R, D]`, the dtype of `x`. Rows past the first `num_experts` are padding.
        num_experts: E, at most R and 256.
        eps: of the norm.
        top_k: experts per token, 1 to 8.
        shared_expert: as of `moe_route`; E <= 255.

    Returns:
        `RoutedRows`: `normed` `[T, D]`, the dtype of `x`, which is `rms_norm(x, norm_weight, eps)`;
        then the fields of `moe_route` for the logits `normed @ router_weight[:E].T`. On CUDA a row
        with a NaN sets the device's error word as there.

    >>> x, router = torch.tensor([[3.0, 4.0], [4.0, -3.0]]), torch.eye(2)
    >>> routed = moe_router(x, torch.ones(2), router, 2, eps=0.0)
    >>> routed.topk_ids.flatten().tolist(), routed.expert_offsets.tolist()
    ([1, 0], [0, 1, 2])
    >>> routed.normed[0]
    tensor([0.8485, 1.1314])
    """
    normed = rms_norm.body(x, norm_weight, eps)
    logits = gemm.body(normed, router_weight, out_dtype=torch.float32)[:, :num_experts]
    return normed, *moe_route.body(logits, top_k, shared_expert)
