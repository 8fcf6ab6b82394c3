"""Mixture of experts: the routed experts of a token and the shared one."""

from typing import cast

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.hooks import is_plain
from l4kernels.layers.norm import RMSNorm
from l4kernels.layers.options import ModelOptions, round_up
from l4kernels.layers.weights.linear import Activations, unquantised
from l4kernels.ops.router import router_tokens


class MoE(nn.Module):
    """Each token visits `top_k` experts, its input scaled by sigmoid(router logit), and the shared
    expert, unscaled. Tokens are sorted by expert, so the cost follows the tokens, not the experts.

    The shared expert is the last expert of both products: weights `[num_experts + 1, N, K]`.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        options: ModelOptions,
    ):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.choices = top_k + 1
        """Rows of a token: its experts' and the shared one's."""
        width, all_experts = round_up(intermediate_size, 8), num_experts + 1
        # The GEMM writes columns in multiples of 8; those past the experts are never looked at.
        self.router = options.part("bf16").linear(hidden_size, round_up(num_experts, 8))
        self.gate_up_proj = options.linear(hidden_size, 2 * width, experts=all_experts)
        self.down_proj = options.linear(width, hidden_size, experts=all_experts)

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """Adds to the rows `[T, hidden_size]` what the layer makes of `norm(x)`, unquantised."""
        return ops.moe_combine(*self._experts(x, norm), residual=x)

    def forward_then_norm(
        self, x: Tensor, norm: RMSNorm, next_norm: RMSNorm
    ) -> tuple[Tensor, Activations]:
        """The same, and the next layer's norm of it, which adds no launch."""
        if not is_plain(self, next_norm):
            x = self(x, norm)
            return x, next_norm(x)
        return next_norm.of_combined(*self._experts(x, norm), x)

    def _experts(self, x: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor, int]:
        """Rows in expert order, and what brings them back: the first arguments of `moe_combine`."""
        normed, routing = self.route(x, norm)
        rows, gather = self.gate_up_proj.by_expert(normed, routing.permutation, self.choices)
        # The score scales the input of the first GEMM: SwiGLU is not homogeneous.
        hidden = self.gate_up_proj(
            rows,
            expert_offsets=routing.expert_offsets,
            row_scale=routing.row_scale,
            activation="swiglu",
            **gather,
        )
        y = self.down_proj(hidden, expert_offsets=routing.expert_offsets)
        return y, routing.inverse, self.choices

    def route(self, x: Tensor, norm: RMSNorm) -> tuple[Tensor, ops.Routing | ops.RoutedRows]:
        """The normalised rows, and where each goes; in one launch, if that is faster."""
        if len(x) <= router_tokens(self.num_experts) and is_plain(norm, self.router):
            weights = norm.weight, cast("Tensor", self.router.weight)
            routed = ops.moe_router(x, *weights, self.num_experts, norm.eps, self.top_k, True)
            return routed.normed, routed
        normed = unquantised(norm(x))
        logits = self.router(normed, out_dtype=torch.float32)[:, : self.num_experts]
        return normed, ops.moe_route(logits, self.top_k, shared_expert=True)
