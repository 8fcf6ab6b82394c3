"""Mixture of experts: the routed experts of a token and the shared one."""

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.norm import RMSNorm
from l4kernels.layers.options import ModelOptions, round_up
from l4kernels.layers.weights.bf16 import Bf16Linear
from l4kernels.layers.weights.linear import unquantised
from l4kernels.ops.router import MAX_ROUTER_TOKENS


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
        width, all_experts = round_up(intermediate_size, 8), num_experts + 1
        # The GEMM writes columns in multiples of 8; those past the experts are never looked at.
        self.router = Bf16Linear(
            hidden_size, round_up(num_experts, 8), dtype=options.dtype, device=options.device
        )
        self.gate_up_proj = options.linear(hidden_size, 2 * width, experts=all_experts)
        self.down_proj = options.linear(width, hidden_size, experts=all_experts)

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """Adds to the rows `[T, hidden_size]` what the layer makes of `norm(x)`, unquantised."""
        normed, routing = self.route(x, norm)
        choices = self.top_k + 1
        # The score scales the input of the first GEMM: SwiGLU is not homogeneous.
        hidden = self.gate_up_proj(
            self.gate_up_proj.permute(normed, routing.permutation, choices),
            expert_offsets=routing.expert_offsets,
            row_scale=routing.row_scale,
            activation="swiglu",
        )
        y = self.down_proj(hidden, expert_offsets=routing.expert_offsets)
        return ops.moe_combine(y, routing.inverse, choices, residual=x)

    def route(self, x: Tensor, norm: RMSNorm) -> tuple[Tensor, ops.Routing | ops.RoutedRows]:
        """The normalised rows, and where each goes; of few tokens in one launch."""
        if len(x) <= MAX_ROUTER_TOKENS:
            routed = ops.moe_router(
                x, norm.weight, self.router.weight, self.num_experts, norm.eps, self.top_k, True
            )
            return routed.normed, routed
        normed = unquantised(norm(x))
        logits = self.router(normed, out_dtype=torch.float32)[:, : self.num_experts]
        return normed, ops.moe_route(logits, self.top_k, shared_expert=True)
