"""Mixture of experts: the routed experts of a token and the shared one."""

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.options import ModelOptions, round_up
from l4kernels.layers.weights.linear import Activations


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
        self.router = options.part("bf16").linear(hidden_size, round_up(num_experts, 8))
        self.gate_up_proj = options.linear(hidden_size, 2 * width, experts=all_experts)
        self.down_proj = options.linear(width, hidden_size, experts=all_experts)

    def forward(self, x: Activations, residual: Tensor) -> Tensor:
        logits = self.router(x, out_dtype=torch.float32)[:, : self.num_experts]
        routing = ops.moe_route(logits, self.top_k, shared_expert=True)
        choices = self.top_k + 1
        # The score scales the input of the first GEMM: SwiGLU is not homogeneous.
        hidden = self.gate_up_proj(
            self.gate_up_proj.permute(x, routing.permutation, choices),
            expert_offsets=routing.expert_offsets,
            row_scale=routing.row_scale,
            activation="swiglu",
        )
        y = self.down_proj(hidden, expert_offsets=routing.expert_offsets)
        return ops.moe_combine(y, routing.inverse, choices, residual=residual)
