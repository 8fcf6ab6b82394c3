"""A mixture-of-experts feed-forward block in one call."""

from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.ops.check import FP8, Checker


def moe_ffn(
    x: Tensor,
    router_w: Tensor,
    w13: Tensor,
    w2: Tensor,
    shared_w13: Tensor | None = None,
    shared_w2: Tensor | None = None,
    *,
    top_k: int = 1,
    residual: Tensor | None = None,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    shared_w13_scale: Tensor | None = None,
    shared_w2_scale: Tensor | None = None,
) -> Tensor:
    """Llama 4's routed feed-forward: router, experts, shared expert and residual; graph-safe.

    A token's input to an expert is scaled by the sigmoid of its router logit; the shared expert
    sees it unscaled. Tokens are sorted by expert, so the cost follows the tokens; static shapes
    and no host synchronisation.

    Args:
        x: `[T, D]` bfloat16 (float32 and float16 on the CPU); with fp8 weights quantised here,
            per token.
        router_w: `[R, D]`, the dtype of `x`, R at least the number of experts E: rows past E
            are ignored, so that R can be the multiple of 8 that CUDA asks for.
        w13: `[E, 2F, D]`, the dtype of `x` or e4m3; gate and up rows interleaved by
            `ops.interleave_gate_up(gate, up)`, once, at load.
        w2: `[E, D, F]`, the dtype of `w13`.
        shared_w13, shared_w2: `[2F', D]`, interleaved likewise, and `[D, F']`; both or neither.
        top_k: experts per token, 1 to 8.
        residual: `[T, D]`, added at the end.
        w13_scale, w2_scale, shared_w13_scale, shared_w2_scale: float32 per output channel of e4m3
            weights, the weight's shape without its last dimension. F is then a multiple of 128.

    Returns:
        `[T, D]`, the dtype of `x`.

    Raises:
        ValueError, TypeError: shapes, dtypes or layouts that do not fit.

    >>> x, experts = torch.ones(2, 4), torch.ones(2, 16, 4)
    >>> moe_ffn(x, torch.zeros(2, 4), experts, torch.ones(2, 4, 8)).shape
    torch.Size([2, 4])
    """
    check = Checker("moe_ffn")
    check.shape("x", x, ["T", "D"])
    size = x.shape[1]
    check.shape("w13", w13, ["E", "2F", size])
    experts, width = w13.shape[0], w13.shape[1] // 2
    check.shape("w2", w2, [experts, size, width])
    check.shape("router_w", router_w, ["R", size])
    check.require(
        router_w.shape[0] >= experts,
        f"expected router_w to have a row for each of {experts} experts, got {router_w.shape[0]}",
    )
    check.require(
        (shared_w13 is None) == (shared_w2 is None), "expected shared_w13 and shared_w2, or neither"
    )
    weights = {"w13": (w13, w13_scale), "w2": (w2, w2_scale)}
    if shared_w13 is not None and shared_w2 is not None:
        check.shape("shared_w13", shared_w13, ["2F'", size])
        check.shape("shared_w2", shared_w2, [size, shared_w13.shape[0] // 2])
        weights["shared_w13"] = shared_w13, shared_w13_scale
        weights["shared_w2"] = shared_w2, shared_w2_scale
    for name, (weight, scale) in weights.items():
        check.dtype(name, weight, (w13.dtype,))
        check.require(
            (scale is None) == (weight.dtype != FP8),
            f"expected {name}_scale exactly for e4m3 weights, got {name} {weight.dtype}",
        )
        if scale is not None:
            check.shape(f"{name}_scale", scale, list(weight.shape[:-1]))
    logits = ops.gemm(x, router_w, out_dtype=torch.float32)[:, :experts]
    routing = ops.moe_route(logits, top_k)
    fp8 = w13.dtype == FP8
    permute = ops.moe_permute_fp8 if fp8 else ops.moe_permute
    rows = permute(x, routing.permutation, top_k)
    routed = _swiglu(
        rows, *weights["w13"], *weights["w2"], x.dtype, routing.expert_offsets, routing.row_scale
    )
    shared = None
    if "shared_w13" in weights:
        rows = ops.quantize_fp8(x, "row") if fp8 else x
        shared = _swiglu(rows, *weights["shared_w13"], *weights["shared_w2"], x.dtype)
    return ops.moe_combine(routed, routing.inverse, top_k, shared, residual)


def _swiglu(
    rows: Tensor | ops.Quantized,
    w13: Tensor,
    w13_scale: Tensor | None,
    w2: Tensor,
    w2_scale: Tensor | None,
    dtype: torch.dtype,
    offsets: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Tensor:
    routed: dict[str, Any] = {"expert_offsets": offsets}
    if isinstance(rows, Tensor):
        hidden = ops.gemm(rows, w13, row_scale=row_scale, activation="swiglu", **routed)
        return ops.gemm(hidden, w2, **routed)
    assert w13_scale is not None  # as all e4m3 weights were checked to have
    q, scale = rows
    q, scale = ops.gemm_swiglu_fp8(q, w13, sfa=scale, sfb=w13_scale, row_scale=row_scale, **routed)
    return ops.gemm(q, w2, sfa=scale, sfb=w2_scale, out_dtype=dtype, **routed)
